"""Graded corruptions of studies: what scanners, patients and protocols do to an image.

A corruption changes the volume as it was read, before the modality's normalisation, as it happens
in practice. Its strength is relative to the volume's own robust range, so that MR volumes of any
scale are changed alike. Shape and affine stay.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from mcmiad_monai.modality import IntensityRecipe, Modality
from mcmiad_monai.research.robustness import effects
from mcmiad_monai.research.robustness.effects import Effect, Planes
from mcmiad_monai.transforms import VolumeError, normalizer
from mcmiad_monai.transforms.foreground import subsample
from mcmiad_monai.transforms.intensity import CT_WINDOW
from mcmiad_monai.transforms.metadata import PICTURE, with_metadata_of

#: Grades of a corruption.
SEVERITIES = (1, 2, 3, 4, 5)
#: Ends of the robust range, in percent of the foreground.
ROBUST_PERCENTILES = (1.0, 99.0)
#: A minimum that fills at least this share of the background was set by a program.
MASKED_SHARE = 0.9


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption."""

    name: str
    levels: tuple[float, float, float, float, float]  # strength at the severities 1 to 5
    unit: str  # of the levels
    recipes: tuple[IntensityRecipe, ...]  # of the modalities in which it occurs
    effect: Effect
    moves: bool = False  # whether anatomy, and with it the lesion mask, moves
    min_slices: int = 1  # a study with fewer cannot show it


_NOISE, _COARSER = (0.02, 0.04, 0.07, 0.11, 0.16), (1.5, 2, 2.5, 3, 4)
_OF_RANGE, _OF_FIELD = "standard deviation / robust range", "standard deviation / field of view"
_BIAS, _CUT = "largest coefficient of the log field", "share of the k-space diagonal cut off"
_GAMMA, _SLICE = "gamma or its inverse", "times the slice thickness"
_MRI: tuple[IntensityRecipe, ...] = ("mri",)
_EVERY: tuple[IntensityRecipe, ...] = ("mri", "ct", "oct")

CORRUPTIONS: dict[str, Corruption] = {
    c.name: c
    for c in (
        Corruption("rician_noise", _NOISE, _OF_RANGE, _MRI, effects.rician_noise),
        Corruption("gaussian_noise", _NOISE, _OF_RANGE, ("ct", "oct"), effects.gaussian_noise),
        Corruption("bias_field", (0.1, 0.2, 0.3, 0.4, 0.5), _BIAS, _MRI, effects.bias_field),
        Corruption("gibbs_ringing", (0.3, 0.45, 0.6, 0.7, 0.8), _CUT, _MRI, effects.gibbs_ringing),
        Corruption("motion", (1, 2, 3, 5, 8), "mm", _MRI, effects.motion),
        Corruption("blur", (0.003, 0.006, 0.01, 0.015, 0.025), _OF_FIELD, _EVERY, effects.blur),
        Corruption("contrast", (1.2, 1.4, 1.7, 2.1, 2.7), _GAMMA, _EVERY, effects.contrast),
        Corruption("resolution", _COARSER, "times the pixel size", _EVERY, effects.resolution),
        Corruption(
            "thick_slices", _COARSER, _SLICE, ("mri", "ct"), effects.thick_slices, min_slices=2
        ),
        Corruption("rotation", (2, 5, 10, 15, 20), "degrees", _EVERY, effects.rotation, moves=True),
        Corruption("hu_shift", (10, 20, 40, 60, 100), "HU", ("ct",), effects.hounsfield_shift),
    )
}


def corruptions_for(modality: Modality) -> dict[str, Corruption]:
    """Corruptions that occur in a modality: motion in MRI, a shift of Hounsfield units in CT."""
    return {name: c for name, c in CORRUPTIONS.items() if modality.intensity in c.recipes}


class StudyCorruptor:
    """All corruptions of one study; what they are relative to is measured once.

    Parameters
    ----------
    volume : MetaTensor (1, X, Y, Z)
        In canonical orientation and in the units of the file.
    modality : Modality
        Decides the slice axis and what the foreground is.
    case : str
        Random numbers follow from it, from the corruption and from the seed, never from the order
        in which studies are done.

    Raises
    ------
    VolumeError
        If no foreground is found.
    """

    def __init__(self, volume: MetaTensor, *, modality: Modality, case: str, seed: int = 0) -> None:
        self.volume, self.modality, self.case, self.seed = volume, modality, case, seed
        values = _values(volume)
        self._grey = _white(volume) if volume.meta.get(PICTURE, False) else None
        inside = self._foreground(values)
        self._range = _robust_range(values, inside)
        # zero signal: of a volume with values below zero, such as CT, its minimum
        self._zero = min(0.0, float(values.min()))
        self._background = _masked_background(values, inside)

    def applies(self, corruption: Corruption) -> bool:
        """Whether the study has slices enough to show a corruption."""
        return int(self.volume.shape[1 + self.modality.slice_axis]) >= corruption.min_slices

    def __call__(self, corruption: Corruption, severity: int) -> MetaTensor:
        """Image under a corruption of severity 1 to 5."""
        values = self._apply(self.volume, self._zero, corruption, severity, "bilinear")
        if not corruption.moves and self._background is not None:
            values = torch.where(self._background, _values(self.volume), values)
        values = values.clamp(0, self._grey) if self._grey else values  # a picture's greys
        return with_metadata_of(values[None].to(self.volume.device), self.volume)

    def moved(self, mask: MetaTensor, corruption: Corruption, severity: int) -> MetaTensor:
        """A mask (1, X, Y, Z) of the study, turned with the image if the corruption moves it."""
        if not corruption.moves:
            return mask
        values = self._apply(mask, 0.0, corruption, severity, "nearest")
        return with_metadata_of(values[None].to(mask.device), mask)

    def _apply(
        self, volume: MetaTensor, zero: float, corruption: Corruption, severity: int, mode: str
    ) -> Tensor:
        """Effect on the image, or on a mask, plane by plane: (X, Y, Z)."""
        axis = self.modality.slice_axis
        sizes = np.linalg.norm(self.volume.affine.cpu().numpy()[:3, :3], axis=0)
        x, y = (float(size) for a, size in enumerate(sizes) if a != axis)
        planes = Planes(
            values=_values(volume).movedim(axis, 0).contiguous() - zero,
            low=self._range[0] - zero,
            high=self._range[1] - zero,
            zooms=(x, y),
            hounsfield=self._grey / (CT_WINDOW[1] - CT_WINDOW[0]) if self._grey else 1.0,
            mode=mode,
            rng=random_state(self.seed, corruption.name, self.case),
        )
        out = corruption.effect(planes, corruption.levels[severity - 1]).float() + zero  # (n, X, Y)
        return out.movedim(0, axis).contiguous()

    def _foreground(self, values: Tensor) -> Tensor:
        recipe = normalizer(self.modality.intensity)
        inside = recipe.foreground(np.ascontiguousarray(values.numpy()), picture=bool(self._grey))
        if not inside.any():
            raise VolumeError(
                f"{self.case} has no foreground for the recipe {self.modality.intensity!r}: its "
                f"values go from {values.min():g} to {values.max():g}. Check that the modality and "
                "the units are right; CT is expected in Hounsfield units."
            )
        return torch.from_numpy(inside)


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
