"""Version of the project; a module of its own, so that the lowest room can read it."""

__version__ = "0.1.0"
