"""What kind of study a volume is: given by the user or a header, checked, and never guessed.

Checked are its header, the units of its values, and the planes of its slices.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

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

HOUNSFIELD_SPAN = 50.0
"""Less lies between the extreme voxels of no CT: noise alone is 10, and fat and muscle differ by
150 HU. Values in HU / 1000 or standardised ones lie closer together."""

PADDING_HOUNSFIELD = -1100.0
"""Below the air of any scanner: what is as low pads the image."""

FAT_HOUNSFIELD = -30.0
"""Fat and air lie below, muscle and organs above."""

FAT_SHARE = 0.005
"""A CT in which less of the voxels is fat or air is cropped to organs or to bone."""

DENSE_HOUNSFIELD = 500.0
"""Above soft tissue with contrast medium; dense bone and metal remain."""

DENSE_SHARE = 0.1
"""A CT with more of it also has marrow, fat or air; without them values are shifted upwards."""

MIN_PLANE = 8
"""Fewest pixels of a slice along both of its axes."""

MAX_EXTENT_RATIO = 3.0
"""A head or trunk is at most twice as wide as deep: a longer plane is cut across a thin slab."""

MAX_PIXEL_RATIO = 8.0
"""A plane with more pixels along one axis for each along the other is cut across a stack of thick
slices: 31 sagittal slices of 256 x 256 pixels give axial strips, 5 mm x 1 mm a pixel."""

PLANES = ("sagittal", "coronal", "axial")
"""Planes across left-right, back-front and down-up: the axes of the canonical volume."""


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
        Refuse a study whose header, values or proportions contradict the modality. A slice of a
        few pixels is refused in any case.
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
            If the modality is not known, or contradicts the header or the values; if slices would
            be a few pixels wide, as those of a single slice of another plane.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            volume = d[key]
            name = str(volume.meta.get("filename_or_obj", "the study"))
            header = d.get(DICOM_MODALITY) or volume.meta.get(DICOM_MODALITY)
            kind, source = self._settle(name, d.get(MODALITY), header)
            _check_plane(name, kind, volume, check_ratio=self.check)
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
        reason = _not_hounsfield(values)
        if reason:
            raise VolumeError(
                f"{name} has values from {low:g} to {float(values.max()):g} {reason}, so they are "
                "no Hounsfield units, which CT needs. Export the original series with its rescale "
                "slope and intercept, or pass check_modality false."
            )
    elif float((values < AIR_HOUNSFIELD).mean()) > AIR_SHARE:
        raise VolumeError(
            f"{name} has values down to {low:g} as Hounsfield units have, so it seems to be CT, "
            f"and {kind.title} is needed. Choose the model of its modality, or pass "
            "check_modality false."
        )


def _not_hounsfield(values: NDArray[np.float32]) -> str | None:
    """Why values (X, Y, Z) cannot be Hounsfield units; None if they can.

    The minimum is left out where fat is looked for: it may be the value outside of a mask.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0:
        return "and none below 0"
    if high - low < HOUNSFIELD_SPAN:
        return f"within less than {HOUNSFIELD_SPAN:g}"
    inside = values[values > max(low, PADDING_HOUNSFIELD)]
    dense = float((inside > DENSE_HOUNSFIELD).mean())
    if dense > DENSE_SHARE and float((inside < FAT_HOUNSFIELD).mean()) < FAT_SHARE:
        return (
            f"with {dense:.0%} above {DENSE_HOUNSFIELD:g} and neither fat nor air (about -100 and "
            "-1000), as without the rescale intercept"
        )
    return None


def _check_plane(name: str, kind: Modality, volume: MetaTensor, *, check_ratio: bool) -> None:
    """Refuse a volume from which slices of the model's plane come out as narrow strips."""
    affine = volume.affine.cpu().numpy()
    world = nib.io_orientation(affine)[:, 0].astype(int)  # which world axis a voxel axis follows
    voxels, sizes = np.empty(3, dtype=int), np.empty(3)
    voxels[world] = volume.shape[1:]
    sizes[world] = np.asarray(volume.shape[1:]) * nib.affines.voxel_sizes(affine)
    in_plane = [a for a in range(3) if a != kind.slice_axis]
    pixels, extent = voxels[in_plane], sizes[in_plane]
    # a B-scan is long and flat, and a picture has no millimetres
    check_ratio = check_ratio and kind.intensity != "oct" and not volume.meta.get(PICTURE)
    strips = check_ratio and (
        extent.max() > MAX_EXTENT_RATIO * extent.min()
        or pixels.max() > MAX_PIXEL_RATIO * pixels.min()
    )
    if pixels.min() >= MIN_PLANE and not strips:
        return
    few = in_plane[int(pixels.argmin())]
    stack = voxels[few] == voxels.min()
    found = f"{voxels[few]} {PLANES[few]} slice(s)" if stack else "a volume of few voxels"
    wanted = PLANES[kind.slice_axis]
    limits = f"of at least {MIN_PLANE} x {MIN_PLANE} pixels"
    if check_ratio:
        limits += (
            f", at most {MAX_EXTENT_RATIO:g} times as long as wide in mm and {MAX_PIXEL_RATIO:g} "
            "times in pixels"
        )
    raise VolumeError(
        f"{name} is {found}: its {wanted} slices would have {pixels[0]} x {pixels[1]} pixels, "
        f"{extent[0]:.0f} x {extent[1]:.0f} mm. {kind.title} is looked at in {wanted} slices "
        f"{limits}. Give the {wanted} series, or a volume of thin slices of the whole organ"
        + (", or pass check_modality false." if pixels.min() >= MIN_PLANE else ".")
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
