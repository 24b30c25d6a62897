"""Finding the message that helps below the ones that MONAI wraps around it."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle, or an override of it, is not as it has to be."""


#: Beginnings of the messages with which MONAI wraps what a configuration or a transform raises.
MONAI_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "applying transform")


def unwrap(error: BaseException) -> BaseException:
    """The error below MONAI's wrappers; causes that the error itself names are left alone."""
    while isinstance(error, RuntimeError) and str(error).startswith(MONAI_WRAPPERS):
        if error.__cause__ is None:
            break
        error = error.__cause__
    return error


def root_message(error: BaseException) -> str:
    """Kind and message of an error, without what MONAI wraps around it."""
    below = unwrap(error)
    return f"{type(below).__name__}: {below}"
