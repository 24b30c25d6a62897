"""Who made an object, and its UIDs: the same study, model and settings give the same ones."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from mcmiad_monai.dicom.source import Source
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.version import __version__

NAME = "mcmiad_monai"
"""Of manufacturer and algorithm."""

NOTE = "research, not for diagnosis"
"""Stands in every description."""

UUID_ROOT = "2.25"
"""Root of UIDs that are made of 128 bits, here of a digest (DICOM PS3.5, B.2)."""

SERIES_NUMBERS = {"seg": 91, "pmap": 92, "sr": 93, "sc": 94}
"""Last two digits of the number of a kind's series; the first ones are the source's."""

LARGEST_NUMBER = 10_000_000
"""From here on, numbers of series count from 0 again, to stay whole numbers of 32 bits."""


class Identity:
    """Makes the UIDs of a prediction's objects, and says what made them.

    An archive that has an object takes another one of its UID for the same. So UIDs depend on all
    that the content depends on: series, files, model, settings and the form of the objects.

    Parameters
    ----------
    source : Source
    prediction : Prediction
    **form
        Options of the objects.
    """

    def __init__(self, source: Source, prediction: Prediction, **form: bool) -> None:
        scores = prediction.scores
        self.made_with: dict[str, Any] = dict(scores.get("made_with") or {})
        self._of = [source.series, scores.get("input"), self.made_with, form]
        self._number = int(source.headers[0].get("SeriesNumber") or 0) % LARGEST_NUMBER
        self._modality = prediction.modality

    def uid(self, *parts: str) -> str:
        """UID of what the parts name, such as ``"seg", "instance"``."""
        text = json.dumps([self._of, parts], sort_keys=True)
        number = int.from_bytes(sha256(text.encode()).digest()[:16], "big")
        return f"{UUID_ROOT}.{number}"

    def instance(self, kind: str, what: str) -> dict[str, Any]:
        """UIDs, numbers, description and equipment of the one object of a kind."""
        return {
            "series_instance_uid": self.uid(kind, "series"),
            "series_number": 100 * self._number + SERIES_NUMBERS[kind],
            "sop_instance_uid": self.uid(kind, "instance"),
            "instance_number": 1,
            "series_description": f"{what} ({NOTE})",
            "manufacturer": NAME,
            "manufacturer_model_name": f"{NAME} {self._modality}",
            "software_versions": __version__,
            "device_serial_number": self.model[:16],
        }

    @property
    def model(self) -> str:
        """SHA-256 of the model."""
        return str(self.made_with.get("model") or "unknown")

    @property
    def parameters(self) -> dict[str, str]:
        """What the algorithm ran with."""
        known = {"model": self.model, "note": NOTE, "heat": "1.0 is the calibrated threshold"}
        named = ("mask_threshold", "slice_range", "region", "precision")
        return known | {key: str(self.made_with[key]) for key in named if key in self.made_with}
