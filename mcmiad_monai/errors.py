"""Finding the message that helps below the ones that MONAI wraps around it."""

from __future__ import annotations

import re


class BundleError(ValueError):
    """A bundle, or an override of it, is not as it has to be."""


#: Control characters of terminals and of text direction, line separators, undecodable bytes.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

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
    """Kind and message of an error on one line, without what MONAI wraps around it."""
    below = unwrap(error)
    return escaped(f"{type(below).__name__}: {below}")


def escaped(text: str) -> str:
    r"""Text of a file name or a header on one line: control characters as ``\n``, ``\x1b``."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
