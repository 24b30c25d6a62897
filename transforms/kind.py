"""What kind of study a volume is: given by the user or a header, checked, and never guessed."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from mcmiad_monai.modality import MODALITIES, Modality, get_modality, modality_of_dicom
from mcmiad_monai.transforms.checks import VolumeError
from mcmiad_monai.transforms.foreground import subsample
from mcmiad_monai.transforms.metadata import (
    DICOM_MODALITY,
    MODALITY,
    MODALITY_FROM,
    PICTURE,
    plain,
)

logger = logging.getLogger(__name__)

AIR_HOUNSFIELD = -500.0
"""Darker than any tissue in Hounsfield units; MR and OCT signals do not go there."""

AIR_SHARE = 0.02
"""Share of voxels of air above which values must be Hounsfield units."""


class StudyModalityd(MapTransform):
    """Settle the modality of each volume, and refuse a volume of another one.

    The modality is that of the model. A unified model takes it from the key ``modality`` of the
    data (a datalist, a folder's name or a request puts it there) or from the DICOM header; a study
    without either is refused. What the header says is read by `load_volume` (DICOM, or a
    BIDS sidecar), or given under the key ``dicom_modality`` where a server has it.

    Afterwards ``meta["modality"]`` holds the name and ``meta["modality_from"]`` the reason.

    Parameters
    ----------
    keys : KeysCollection
        Loaded volumes (1, X, Y, Z), before normalisation.
    modality : Modality or str
        Of the model; ``"unified"`` for all.
    check : bool
        Refuse a study whose header or whose values contradict the modality.
    """

    def __init__(
        self, keys: KeysCollection, modality: Modality | str, *, check: bool = True
    ) -> None:
        super().__init__(keys)
        self.kind = get_modality(modality) if isinstance(modality, str) else modality
        self.check = check

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Settle every key.

        Raises
        ------
        VolumeError
            If the modality is not known, or contradicts the header or the values.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            volume = d[key]
            name = str(volume.meta.get("filename_or_obj", "the study"))
            header = d.get(DICOM_MODALITY) or volume.meta.get(DICOM_MODALITY)
            kind, source = self._settle(name, d.get(MODALITY), header)
            if self.check:
                _check_header(name, kind, header)
                _check_units(name, kind, volume)
            volume.meta[MODALITY], volume.meta[MODALITY_FROM] = kind.name, source
        return d

    def _settle(self, name: str, given: Any, header: str | None) -> tuple[Modality, str]:
        if not self.kind.is_unified:
            if self.check and given is not None and given != self.kind.name:
                raise VolumeError(
                    f"{name} is listed as {given}, and the model is for {self.kind.name}; use a "
                    "model of that modality, or correct the list."
                )
            return self.kind, "the model"
        if given is not None:
            if given not in MODALITIES:
                raise VolumeError(
                    f"{name} has the modality {given!r}; one of {sorted(MODALITIES)} is needed."
                )
            return MODALITIES[given], "given"
        found = modality_of_dicom(header) if header else None
        if found is None:
            says = f"its header says {header!r}" if header else "no header says it"
            raise VolumeError(
                f"the modality of {name} is not known ({says}), and it is never guessed. Give it: "
                "study_modality for all studies, 'modality' in a datalist, or a folder named "
                f"after one of {sorted(MODALITIES)}."
            )
        logger.info("taken for %s, as its header says %s", found, header)
        return MODALITIES[found], f"the header ({header})"


def _check_header(name: str, kind: Modality, header: str | None) -> None:
    if header and header != kind.dicom:
        raise VolumeError(
            f"{name} is {header} by its header, and {kind.title} ({kind.dicom}) is needed; choose "
            "the right series or the model of its modality. If the header is wrong, pass "
            "check_modality false."
        )


def _check_units(name: str, kind: Modality, volume: MetaTensor) -> None:
    """Hounsfield units where they belong, and only there; pictures have grey levels anyway."""
    if volume.meta.get(PICTURE):
        _check_pages(name, kind, volume)
        return
    values = subsample(np.asarray(plain(volume)[0].cpu().numpy()))
    low = float(values.min())
    if kind.intensity == "ct":
        if low >= 0:
            raise VolumeError(
                f"{name} has values from {low:g} to {float(values.max()):g} and none below 0, so "
                "they are no Hounsfield units, which CT needs. Export the original series with "
                "its rescale slope and intercept, or pass check_modality false."
            )
    elif float((values < AIR_HOUNSFIELD).mean()) > AIR_SHARE:
        raise VolumeError(
            f"{name} has values down to {low:g} as Hounsfield units have, so it seems to be CT, "
            f"and {kind.title} is needed. Choose the model of its modality, or pass "
            "check_modality false."
        )


def _check_pages(name: str, kind: Modality, volume: MetaTensor) -> None:
    """Pages of one picture are slices of a volume in OCT alone, where they are B-scans."""
    pages = volume.shape[1 + kind.slice_axis]
    if pages > 1 and kind.intensity != "oct":
        raise VolumeError(
            f"{name} has {pages} pages without places in the patient; {kind.title} needs one "
            "image, or a volume with its geometry. Save each page as a file of its own, or export "
            "the series as DICOM or NIfTI."
        )
