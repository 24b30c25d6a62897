"""The command line ``mcmiad``."""

from mcmiad_monai.cli.parser import main

__all__ = ["main"]
