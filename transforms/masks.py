"""What counts as lesion in a mask: labels, black and white, or the soft edges of interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcmiad_monai.transforms.checks import VolumeError, looks_like_label_map

JPEG_MASK_LEVEL = 127
"""Half of white: compression leaves small grey values around the lesions of a JPEG mask."""

WHITE = 255.0
"""Of a black-and-white picture."""

SOFT_MAXIMUM = 1.5
"""A mask of 0 and 1 that was interpolated stays below it; cubic splines overshoot by a fifth."""

UNDERSHOOT = 0.25
"""How far below 0 splines go, as a share of the maximum."""

GREY_SHARE = 0.25
"""Share of voxels between a tenth and nine tenths of the maximum above which it is an image."""

FEW_LABELS = 8
"""A mask of no more values is one of labels, however small and thin their regions are."""

WHOLE_TOLERANCE = 1e-3
"""Labels that were stored with a slope are this close to whole numbers."""


def lesion_of(
    values: NDArray[np.float32], source: Path, label: int | None = None
) -> NDArray[np.bool_]:
    """Where a mask (X, Y, Z) says lesion.

    It is where it has the value `label`, or, without one:

    ===========================================  ================================================
    0 and one other value                        the other value
    whole numbers, several labels                any label, whatever is above 0
    fractions up to 1, as of interpolation       at least half of the maximum
    0 to 255 with grey edges, as of a picture    at least half of the maximum
    JPEG                                         above half of white
    ===========================================  ================================================

    Greys up to 255 are labels where they are at most 8, or lie in large uniform regions.

    Raises
    ------
    VolumeError
        If it has NaN or infinity, values below 0, fractions between labels, or the many grey
        values of an image.
    """
    if not np.isfinite(values).all():
        raise VolumeError(
            f"{source} has NaN or infinite voxels; a mask needs 0 outside lesions and > 0 inside."
        )
    if label is not None:
        return values == label
    if source.suffix.lower() in (".jpg", ".jpeg"):
        return values > JPEG_MASK_LEVEL
    low, top = float(values.min()), float(values.max())
    if low == 0 and not ((values > 0) & (values < top)).any():
        return values > 0
    near = np.rint(values)
    whole = bool((np.abs(values - near) <= WHOLE_TOLERANCE).all())
    if low < (0 if whole else -UNDERSHOOT * top):
        raise _no_mask(source, f"values from {low:g} to {top:g}")
    grey = _is_grey(values, top)
    if whole and (_are_labels(near) or (top != WHITE and not grey)):
        return near > 0
    if grey:
        raise _no_mask(source, f"the many grey values of an image, up to {top:g}")
    if not whole and not (top <= SOFT_MAXIMUM or WHITE / 2 <= top <= WHITE):
        raise _no_mask(source, f"fractions up to {top:g}, as of labels that were interpolated")
    return values >= top / 2


def _are_labels(values: NDArray[np.float32]) -> bool:
    return np.unique(values[values > 0]).size <= FEW_LABELS or looks_like_label_map(values)


def _is_grey(values: NDArray[np.float32], top: float) -> bool:
    return bool(((values > 0.1 * top) & (values < 0.9 * top)).mean() > GREY_SHARE)


def _no_mask(source: Path, found: str) -> VolumeError:
    return VolumeError(
        f"{source} has {found}; a mask is needed: 0 outside lesions and 1 (or labels) inside. "
        "Check that it is the mask, and resample masks with nearest neighbours."
    )
