"""Generated studies for the demo and the tests."""
