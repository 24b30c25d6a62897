"""UIDs that a second run finds again: the same study, model and settings give the same object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

#: Root of UIDs that are made of a UUID, here of the first bits of a digest (DICOM PS3.5, B.2).
UUID_ROOT = "2.25"


class Identity:
    """Makes the UIDs of a prediction's objects.

    An archive that has an object already takes a second one with its UID for the same; so UIDs
    depend on all that the content depends on: series, input, model and settings.

    Parameters
    ----------
    series : str
        UID of the series that was analysed.
    scores : mapping
        Of the prediction: ``input`` and ``made_with`` are read.
    """

    def __init__(self, series: str, scores: Mapping[str, Any]) -> None:
        self._of = {"series": series, **{key: scores.get(key) for key in ("input", "made_with")}}

    def uid(self, *parts: str) -> str:
        """UID of what the parts name, such as ``"seg", "instance"``."""
        text = json.dumps([self._of, parts], sort_keys=True)
        number = int.from_bytes(sha256(text.encode()).digest()[:16], "big")
        return f"{UUID_ROOT}.{number}"
