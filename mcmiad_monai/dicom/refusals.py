"""Codes with which archives answer, in words: those of C-STORE, which STOW-RS uses as well."""

from __future__ import annotations

#: First and last code of "out of resources", after which another try may help.
OUT_OF_RESOURCES = (0xA700, 0xA7FF)
#: "Processing failure": the archive does not say of what.
PROCESSING_FAILURE = 0x0110


def meaning(code: int) -> str:
    """A code with its name in the standard (PS3.4 annex B, PS3.7 annex C)."""
    from pynetdicom.status import GENERAL_STATUS, STORAGE_SERVICE_CLASS_STATUS

    known = STORAGE_SERVICE_CLASS_STATUS | GENERAL_STATUS
    name = known[code][1] if code in known else "not in the standard"
    return f"{name} (code {code:04X})"


def may_pass(code: int) -> bool:
    """Whether the same instance may be stored by another try."""
    return OUT_OF_RESOURCES[0] <= code <= OUT_OF_RESOURCES[1] or code == PROCESSING_FAILURE
