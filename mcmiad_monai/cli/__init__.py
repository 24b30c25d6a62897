"""The command line ``mcmiad``; see `parser`."""
