"""Graded corruptions of studies: what scanners, patients and protocols do to an image.

A corruption changes the volume as it was read, before the modality's normalisation, as it happens
in practice. Its strength is relative to the volume's own robust range, so that MR volumes of any
scale are changed alike. Shape and affine stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from mcmiad_monai.modality import IntensityRecipe, Modality, get_modality
from mcmiad_monai.research.robustness.effects import (
    Effect,
    Planes,
    bias_field,
    blur,
    contrast,
    gaussian_noise,
    gibbs_ringing,
    hounsfield_shift,
    motion,
    resolution,
    rician_noise,
    rotation,
    rotation_of_mask,
    thick_slices,
)
from mcmiad_monai.transforms import VolumeError, normalizer
from mcmiad_monai.transforms.foreground import subsample
from mcmiad_monai.transforms.intensity import CT_WINDOW
from mcmiad_monai.transforms.metadata import PICTURE, with_metadata_of

#: Grades of a corruption; 0 is the study as it is.
SEVERITIES = (1, 2, 3, 4, 5)
#: Ends of the robust range, in percent of the foreground.
ROBUST_PERCENTILES = (1.0, 99.0)
#: A minimum that fills at least this share of the background was set by a program.
MASKED_SHARE = 0.9


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes
    ----------
    name : str
        For options and files, e.g. ``"bias_field"``.
    levels : tuple of five floats
        Strength at the severities 1 to 5.
    unit : str
        What the levels are.
    recipes : tuple of str
        Intensity recipes of the modalities in which it occurs.
    effect : callable
        Of :mod:`mcmiad_monai.research.robustness.effects`.
    mask_effect : callable, optional
        What happens to the lesion mask, where the corruption moves the anatomy.
    min_slices : int
        A study with fewer slices cannot show it.
    """

    name: str
    levels: tuple[float, float, float, float, float]
    unit: str
    recipes: tuple[IntensityRecipe, ...]
    effect: Effect
    mask_effect: Effect | None = None
    min_slices: int = 1

    def level(self, severity: int) -> float:
        """Strength at a severity from 1 to 5.

        Raises
        ------
        ValueError
            If the severity is another.
        """
        if severity not in SEVERITIES:
            raise ValueError(
                f"severity {severity!r} is not known; choose from {SEVERITIES}, or 0 for the "
                "study as it is."
            )
        return self.levels[severity - 1]


_NOISE, _COARSER = (0.02, 0.04, 0.07, 0.11, 0.16), (1.5, 2, 2.5, 3, 4)
_OF_RANGE, _OF_FIELD = "standard deviation / robust range", "standard deviation / field of view"
_BIAS, _CUT = "largest coefficient of the log field", "share of the k-space diagonal cut off"
_EVERY: tuple[IntensityRecipe, ...] = ("mri", "ct", "oct")

CORRUPTIONS: dict[str, Corruption] = {
    c.name: c
    for c in (
        Corruption("rician_noise", _NOISE, _OF_RANGE, ("mri",), rician_noise),
        Corruption("gaussian_noise", _NOISE, _OF_RANGE, ("ct", "oct"), gaussian_noise),
        Corruption("bias_field", (0.1, 0.2, 0.3, 0.4, 0.5), _BIAS, ("mri",), bias_field),
        Corruption("gibbs_ringing", (0.3, 0.45, 0.6, 0.7, 0.8), _CUT, ("mri",), gibbs_ringing),
        Corruption("motion", (1, 2, 3, 5, 8), "mm", ("mri",), motion),
        Corruption("blur", (0.003, 0.006, 0.01, 0.015, 0.025), _OF_FIELD, _EVERY, blur),
        Corruption("contrast", (1.2, 1.4, 1.7, 2.1, 2.7), "gamma or its inverse", _EVERY, contrast),
        Corruption("resolution", _COARSER, "times the pixel size", _EVERY, resolution),
        Corruption(
            "thick_slices",
            _COARSER,
            "times the slice thickness",
            ("mri", "ct"),
            thick_slices,
            min_slices=2,
        ),
        Corruption(
            "rotation",
            (2, 5, 10, 15, 20),
            "degrees",
            _EVERY,
            rotation,
            mask_effect=rotation_of_mask,
        ),
        Corruption("hu_shift", (10, 20, 40, 60, 100), "HU", ("ct",), hounsfield_shift),
    )
}


def corruptions_for(modality: Modality | str) -> tuple[Corruption, ...]:
    """Corruptions that occur in a modality: motion in MRI, a shift of Hounsfield units in CT."""
    kind = get_modality(modality) if isinstance(modality, str) else modality
    return tuple(c for c in CORRUPTIONS.values() if kind.intensity in c.recipes)


def get_corruption(name: str, modality: Modality | str) -> Corruption:
    """Look a corruption of a modality up by name.

    Raises
    ------
    ValueError
        If there is none of this name in the modality; the message lists those there are.
    """
    known = {c.name: c for c in corruptions_for(modality)}
    if name not in known:
        title = modality if isinstance(modality, str) else modality.name
        raise ValueError(
            f"corruption {name!r} is not one of {title}; choose from {', '.join(known)}."
        )
    return known[name]


class StudyCorruptor:
    """All corruptions of one study; what they are relative to is measured once.

    Parameters
    ----------
    volume : MetaTensor (1, X, Y, Z)
        In canonical orientation and in the units of the file.
    modality : Modality or str
        Decides the slice axis and what the foreground is.
    case : str
        Random numbers follow from it, from the corruption and from the seed, never from the order
        in which studies are done.
    mask : MetaTensor (1, X, Y, Z), optional
        Lesion, which turns with the image.
    seed : int

    Raises
    ------
    VolumeError
        If no foreground is found.
    """

    def __init__(
        self,
        volume: MetaTensor,
        *,
        modality: Modality | str,
        case: str,
        mask: MetaTensor | None = None,
        seed: int = 0,
    ) -> None:
        self.kind = get_modality(modality) if isinstance(modality, str) else modality
        self.volume, self.mask, self.case, self.seed = volume, mask, case, seed
        values = _values(volume)
        self._grey = _white(volume) if volume.meta.get(PICTURE, False) else None
        inside = self._foreground(values)
        self._range = _robust_range(values, inside)
        # zero signal: of a volume with values below zero, such as CT, its minimum
        self._zero = min(0.0, float(values.min()))
        self._background = _masked_background(values, inside)

    def applies(self, corruption: Corruption) -> bool:
        """Whether the study has slices enough to show a corruption."""
        return int(self.volume.shape[1 + self.kind.slice_axis]) >= corruption.min_slices

    def __call__(
        self, corruption: Corruption, severity: int
    ) -> tuple[MetaTensor, MetaTensor | None]:
        """Image and mask under a corruption; severity 0 gives the study itself.

        Raises
        ------
        ValueError
            If the severity is not 0 to 5.
        """
        mask = None if self.mask is None else self.moved(self.mask, corruption, severity)
        if severity == 0:
            return self.volume, mask
        values = self._apply(corruption.effect, self.volume, corruption, corruption.level(severity))
        if corruption.mask_effect is None and self._background is not None:
            values = torch.where(self._background, _values(self.volume), values)
        values = values.clamp(0, self._grey) if self._grey else values  # a picture's greys
        return with_metadata_of(values[None].to(self.volume.device), self.volume), mask

    def moved(self, mask: MetaTensor, corruption: Corruption, severity: int) -> MetaTensor:
        """A mask (1, X, Y, Z) of the study, turned with the image if the corruption moves it."""
        if severity == 0 or corruption.mask_effect is None:
            return mask
        level = corruption.level(severity)
        moved = self._apply(corruption.mask_effect, mask, corruption, level)
        return with_metadata_of(moved[None].to(mask.device), mask)

    def _apply(
        self, effect: Effect, volume: MetaTensor, corruption: Corruption, level: float
    ) -> Tensor:
        """Effect on the image, or on the mask, plane by plane: (X, Y, Z)."""
        axis = self.kind.slice_axis
        zero = self._zero if volume is self.volume else 0.0
        sizes = np.linalg.norm(self.volume.affine.cpu().numpy()[:3, :3], axis=0)
        x, y = (float(size) for a, size in enumerate(sizes) if a != axis)
        planes = Planes(
            values=_values(volume).movedim(axis, 0).contiguous() - zero,
            low=self._range[0] - zero,
            high=self._range[1] - zero,
            zooms=(x, y),
            hounsfield=self._grey / (CT_WINDOW[1] - CT_WINDOW[0]) if self._grey else 1.0,
            rng=random_state(self.seed, corruption.name, self.case),
        )
        out = effect(planes, level).float() + zero  # (n, X, Y)
        return out.movedim(0, axis).contiguous()

    def _foreground(self, values: Tensor) -> Tensor:
        recipe = normalizer(self.kind.intensity)
        inside = recipe.foreground(np.ascontiguousarray(values.numpy()), picture=bool(self._grey))
        if not inside.any():
            raise VolumeError(
                f"{self.case} has no foreground for the recipe {self.kind.intensity!r}: its values "
                f"go from {values.min():g} to {values.max():g}. Check that the modality and the "
                "units are right; CT is expected in Hounsfield units."
            )
        return torch.from_numpy(inside)


class Corruptd(MapTransform):
    """Corrupt the volume under ``keys``, between orientation and normalisation in a transform.

    Parameters
    ----------
    keys : str
        The oriented volume (1, X, Y, Z).
    corruption : str
        Name of one of the modality's corruptions.
    severity : int
        0 to 5.
    modality : str
        Name of the modality.
    mask_key : str
        Key of the lesion mask, if there is one.
    case_key : str
        Key of the case's name.
    seed : int
    """

    def __init__(
        self,
        keys: str = "image",
        *,
        corruption: str,
        severity: int,
        modality: str,
        mask_key: str = "label",
        case_key: str = "case",
        seed: int = 0,
    ) -> None:
        super().__init__(keys)
        self.corruption = get_corruption(corruption, modality)
        self.severity, self.modality, self.seed = severity, modality, seed
        self.mask_key, self.case_key = mask_key, case_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Corrupt the volume, and turn its mask where the image turns."""
        d = dict(data)
        key = self.first_key(d)
        corrupt = StudyCorruptor(
            d[key],
            modality=self.modality,
            case=str(d[self.case_key]),
            mask=d.get(self.mask_key),
            seed=self.seed,
        )
        if corrupt.applies(self.corruption):
            d[key], mask = corrupt(self.corruption, self.severity)
            d.update({} if mask is None else {self.mask_key: mask})
        return d


def random_state(seed: int, corruption: str, case: str) -> np.random.RandomState:
    """Random numbers of a corruption of a case, the same at every severity and on any machine."""
    digest = hashlib.sha256(f"{seed}/{corruption}/{case}".encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "little"))


def _values(volume: MetaTensor) -> Tensor:
    """Intensities (X, Y, Z)."""
    return volume.as_tensor()[0].cpu().float()


def _white(volume: MetaTensor) -> float:
    """White of a picture of 8 or 16 bits, as the normalisation of CT pictures takes it."""
    return 255.0 if volume.max() <= 255 else 65535.0


def _robust_range(values: Tensor, inside: Tensor) -> tuple[float, float]:
    """1st and 99th percentile of the foreground; its ends where the two are one."""
    few, within = subsample(values.numpy()), subsample(inside.numpy())
    tissue = few[within] if within.any() else values[inside].numpy()
    low, high = np.percentile(tissue, ROBUST_PERCENTILES)
    if high <= low:
        low, high = values.min(), values.max()
    return float(low), float(high)


def _masked_background(values: Tensor, inside: Tensor) -> Tensor | None:
    """Where the background is one exact value, which no scanner makes: it was masked and stays."""
    outside = values[~inside]
    if outside.numel() == 0:
        return None
    masked = ~inside & (values == outside.min())
    return masked if int(masked.sum()) >= MASKED_SHARE * outside.numel() else None
