"""One normalisation for each modality: MRI percentiles, CT window, OCT percentiles.

A normalised volume is float32, exactly 0 outside the foreground and within [FOREGROUND_FLOOR, 1]
inside. So ``image > 0`` is the foreground mask, and one channel carries both.

These transforms are no MONAI InvertibleTransforms on purpose and leave no trace in
`applied_operations`: MONAI's Invertd takes heatmaps home, and a heatmap must have its geometry
undone and never its intensities. What was done stands in ``meta["intensity"]``, which `inverse`
reads.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from numpy.typing import NDArray
from scipy import ndimage

from mcmiad_monai.modality import MODALITIES, IntensityRecipe
from mcmiad_monai.transforms.checks import VolumeError
from mcmiad_monai.transforms.foreground import (
    Mask,
    Volume,
    ct_foreground,
    fill_holes,
    mri_foreground,
    subsample,
)
from mcmiad_monai.transforms.metadata import (
    MODALITY,
    PICTURE,
    check_volume,
    plain,
    with_metadata_of,
)

FOREGROUND_FLOOR = 1.0 / 255.0
"""Smallest value inside the foreground: one grey level, so that it differs from the 0 outside."""

FAINTEST = 2.0**-24
"""Black of the foreground where images are not normalised: far below a grey level, and above 0."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in the grey of a picture (ITU-R 601)."""

INTENSITY = "intensity"
"""Metadata key of the parameters: recipe, low, high, outside."""

MRI_MEDIAN = 0.4
"""Where the median of MR tissue comes to lie; leaves room for lesions twice as bright."""

MRI_LOW_PERCENTILE = 1.0
"""Percentile of MR tissue that becomes the floor."""

CORE_DEPTH = 0.12
"""Depth of the core below the surface, past the skull, as a share of the foreground's width."""

CT_WINDOW = (-200.0, 250.0)
"""Hounsfield units of the abdominal window in which BMAD prepares its liver slices."""

OCT_PERCENTILES = (1.0, 99.5)
"""Percentiles of an OCT volume that become the floor and 1; speckle peaks are clipped."""


class _Normalize(Transform):
    """Foreground and two limits, between which intensities are mapped linearly and clipped.

    Parameters
    ----------
    normalize_images : bool
        Take the limits from the image itself. Otherwise they are the range of its grey levels: 0 to
        255 or 65535 of a picture, the window of CT, the least and greatest value of another volume.
    mask_background : bool
        Set what lies outside the foreground to 0. Otherwise all pixels are foreground, at least
        `FAINTEST`.
    """

    recipe: IntensityRecipe

    def __init__(self, *, normalize_images: bool = True, mask_background: bool = True) -> None:
        self.normalize_images, self.mask_background = normalize_images, mask_background

    @abstractmethod
    def foreground(self, values: Volume, *, picture: bool) -> Mask:
        """Foreground (X, Y, Z) of the volume."""

    @abstractmethod
    def limits(self, values: Volume, mask: Mask, *, picture: bool) -> tuple[float, float]:
        """Source values that become FOREGROUND_FLOOR and 1."""

    def __call__(self, volume: MetaTensor) -> MetaTensor:
        """Normalise a volume (1, X, Y, Z); the input is left as it is.

        Raises
        ------
        VolumeError
            If no foreground is found.
        """
        check_volume(volume)
        source = volume if isinstance(volume, MetaTensor) else MetaTensor(volume)
        picture = bool(source.meta.get(PICTURE, False))
        channels = np.ascontiguousarray(plain(source).cpu().numpy(), dtype=np.float32)
        values = channels[0] if len(channels) == 1 else np.tensordot(LUMA, channels, 1)
        mask = self.foreground(values, picture=picture)
        if not mask.any():
            raise VolumeError(self._no_foreground(source, values))
        if self.normalize_images:
            low, high = self.limits(values, mask, picture=picture)
        else:
            low, high = self.grey_range(values, picture=picture)
        if not self.mask_background:
            mask = np.ones_like(mask)
        scaled = _rescale(channels, mask, low, high, self.floor)
        out = with_metadata_of(scaled.to(source.device), source)
        outside = float(values.min())
        out.meta[INTENSITY] = {"recipe": self.recipe, "low": low, "high": high, "outside": outside}
        return out

    @property
    def floor(self) -> float:
        """Smallest value of the foreground."""
        return FOREGROUND_FLOOR if self.normalize_images else 0.0

    def grey_range(self, values: Volume, *, picture: bool) -> tuple[float, float]:
        """Source values that become 0 and 1 where images are not normalised."""
        if picture:
            return 0.0, 255.0 if values.max() <= 255.0 else 65535.0
        return CT_WINDOW if self.recipe == "ct" else _ordered(values.min(), values.max())

    def inverse(self, normalised: MetaTensor) -> MetaTensor:
        """Source units from a normalised volume (1, X, Y, Z).

        Exact to rounding where nothing was clipped; outside the foreground comes the source's
        minimum.

        Raises
        ------
        ValueError
            If the volume does not carry the parameters of a normalisation.
        """
        meta = normalised.meta if isinstance(normalised, MetaTensor) else {}
        if INTENSITY not in meta:
            raise ValueError(
                "the volume carries no normalisation parameters under "
                f"meta[{INTENSITY!r}]; a volume that this transform has normalised is expected."
            )
        used = meta[INTENSITY]
        values = plain(normalised)
        span = (used["high"] - used["low"]) / (1.0 - self.floor)
        inside = used["low"] + (values - self.floor) * span
        source = torch.where(values > 0, inside, torch.full_like(inside, used["outside"]))
        out = with_metadata_of(source, normalised)
        del out.meta[INTENSITY]
        return out

    def _no_foreground(self, source: MetaTensor, values: Volume) -> str:
        return (
            f"{source.meta.get('filename_or_obj', 'the volume')} has no foreground for the recipe "
            f"{self.recipe!r}: its values go from {values.min():g} to {values.max():g}. Check that "
            "the modality and the units are right; CT is expected in Hounsfield units."
        )


class NormalizeMRI(_Normalize):
    """Linear map of MR intensities with the median of deep tissue at 0.4.

    The limits are central percentiles of the core of the foreground, which lies deeper than skull
    and scalp. So neither a bright skull nor a lesion moves the grey of the brain.
    """

    recipe = "mri"

    def foreground(self, values: Volume, *, picture: bool) -> Mask:  # noqa: ARG002
        """Head or body, see `mri_foreground`."""
        return mri_foreground(values)

    def limits(self, values: Volume, mask: Mask, *, picture: bool) -> tuple[float, float]:  # noqa: ARG002
        """1st percentile to the floor, median to 0.4, and so linearly to 1."""
        tissue = _core(values, mask)
        low, median = np.percentile(tissue, [MRI_LOW_PERCENTILE, 50.0])
        if median <= low:
            low, median = float(tissue.min()), float(tissue.mean())
        scale = (median - low) / (MRI_MEDIAN - FOREGROUND_FLOOR)
        return _ordered(float(low), float(low + scale * (1.0 - FOREGROUND_FLOOR)))


class NormalizeCT(_Normalize):
    """Abdominal window of Hounsfield units within the body.

    A picture holds grey levels of a window that was applied before; it is mapped by its full range,
    with black as outside.
    """

    recipe = "ct"

    def foreground(self, values: Volume, *, picture: bool) -> Mask:
        """Body, see `ct_foreground`."""
        return fill_holes(values > 0) if picture else ct_foreground(values)

    def limits(self, values: Volume, mask: Mask, *, picture: bool) -> tuple[float, float]:  # noqa: ARG002
        """The window, or the grey range of a picture."""
        return (0.0, 255.0 if values.max() <= 255.0 else 65535.0) if picture else CT_WINDOW


class NormalizeOCT(_Normalize):
    """Percentiles of the whole OCT volume."""

    recipe = "oct"

    def foreground(self, values: Volume, *, picture: bool) -> Mask:  # noqa: ARG002
        """Everything: the vitreous belongs to the image."""
        return np.ones(values.shape, dtype=bool)

    def limits(self, values: Volume, mask: Mask, *, picture: bool) -> tuple[float, float]:  # noqa: ARG002
        """1st and 99.5th percentile."""
        low, high = np.percentile(subsample(values), OCT_PERCENTILES)
        if high <= low:
            low, high = values.min(), values.max()
        return _ordered(float(low), float(high))


def _rescale(values: Volume, mask: Mask, low: float, high: float, floor: float) -> torch.Tensor:
    scale = (1.0 - floor) / (high - low)
    out = (values - np.float32(low)) * np.float32(scale) + np.float32(floor)
    np.clip(out, np.float32(floor or FAINTEST), np.float32(1.0), out=out)
    out *= mask
    return torch.from_numpy(out)  # (C, X, Y, Z)


def _core(values: Volume, mask: Mask) -> NDArray[np.float32]:
    """Foreground intensities below the surface, or all of them where the foreground is thin."""
    few, inside = subsample(values), subsample(mask)
    width = np.sqrt(inside.any(axis=2).sum()) if inside.ndim == 3 else 0
    radius = int(CORE_DEPTH * width)
    share = inside.astype(np.float32)
    for axis in (0, 1):
        share = ndimage.uniform_filter1d(share, 2 * radius + 1, axis=axis, mode="constant")
    core = few[inside & (share > 0.999)]
    return core if core.size >= 100 else few[inside] if inside.any() else values[mask]


def _ordered(low: float, high: float) -> tuple[float, float]:
    """Limits that differ, also for a foreground without contrast, which comes to lie at 0.4."""
    if high > low:
        return low, high
    return low - MRI_MEDIAN, low - MRI_MEDIAN + 1.0


class _Normalized(MapTransform):
    """A normalisation of the volumes under `keys`, with the options of its class."""

    kind: type[_Normalize]

    def __init__(
        self, keys: KeysCollection, *, allow_missing_keys: bool = False, **options: bool
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalize = self.kind(**options)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise every key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.normalize(d[key])
        return d


class NormalizeMRId(_Normalized):
    """`NormalizeMRI` of the volumes under `keys`."""

    kind = NormalizeMRI


class NormalizeCTd(_Normalized):
    """`NormalizeCT` of the volumes under `keys`."""

    kind = NormalizeCT


class NormalizeOCTd(_Normalized):
    """`NormalizeOCT` of the volumes under `keys`."""

    kind = NormalizeOCT


class NormalizeStudyd(MapTransform):
    """Normalise each volume by the recipe of its own ``meta["modality"]``; for unified models."""

    def __init__(
        self, keys: KeysCollection, *, allow_missing_keys: bool = False, **options: bool
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.options = options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise every key.

        Raises
        ------
        ValueError
            If a volume does not say what it is; `StudyModalityd` has to come first.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            name = d[key].meta.get(MODALITY)
            if name not in MODALITIES:
                raise ValueError(
                    f"the volume has the modality {name!r} in its metadata; one of "
                    f"{sorted(MODALITIES)} is needed. Put StudyModalityd before this transform."
                )
            d[key] = normalizer(MODALITIES[name].intensity, **self.options)(d[key])
        return d


_RECIPES: dict[str, type[_Normalize]] = {
    "mri": NormalizeMRI,
    "ct": NormalizeCT,
    "oct": NormalizeOCT,
}


def normalizer(recipe: str | None, **options: bool) -> _Normalize:
    """Normalisation by the name that `modality.Modality.intensity` gives it, with its options.

    Raises
    ------
    ValueError
        If there is no such recipe.
    """
    if recipe not in _RECIPES:
        raise ValueError(f"recipe {recipe!r} is not known; choose one of {sorted(_RECIPES)}.")
    return _RECIPES[recipe](**options)
