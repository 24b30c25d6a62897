"""What a volume must be, and errors that say how to mend one that is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcmiad_monai.transforms.counting import counts

LABEL_MIN_VOXELS = 1000
"""Smaller volumes are never taken for label maps: a 7x5x3 image of zeros and ones is an image."""

LABEL_MAX_VALUES = 1024
"""More distinct values than this are grey values; whole-brain parcellations have some hundreds."""

LABEL_EQUAL_NEIGHBOURS = 0.6
"""Share of equal neighbours above which whole numbers are labels (images 0.03-0.25, labels 0.8)."""

LABEL_SAMPLE = 2**17
"""Voxels that are looked at first."""

LABEL_MAX_PICTURE_VALUES = 3
"""A picture with more grey levels is an image: in a window as wide as metal an organ has a few,
in large uniform regions."""

SINGULAR_TOLERANCE = 1e-6
"""Smallest volume of the unit parallelepiped of the three voxel axes that is not flat."""


class VolumeError(ValueError):
    """A file that cannot be used as a volume; the message says why and what to do."""


def spatial_shape(shape: Sequence[int], path: Path) -> tuple[int, int, int]:
    """Drop trailing singleton dimensions and complete a 2-D shape to (X, Y, 1).

    Raises
    ------
    VolumeError
        If the shape is not that of one 3-D volume or one 2-D image, or an axis has length zero.
    """
    sizes = [int(size) for size in shape]
    if any(size < 1 for size in sizes):
        raise VolumeError(
            f"{path} has shape {tuple(sizes)}, so it holds no voxels; every axis needs at least "
            "one. Export the study again."
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) not in (2, 3):
        raise VolumeError(
            f"{path} has {len(sizes)} dimensions {tuple(sizes)}; a 3-D volume (or one 2-D image) "
            "is needed. Pick one time point, echo or channel first, for example with "
            "nibabel.four_to_three."
        )
    x, y, z = (*sizes, 1)[:3]
    return x, y, z


def check_affine(affine: NDArray[np.float64], path: Path) -> None:
    """Refuse an affine that maps the volume onto a plane, a line or nowhere.

    Raises
    ------
    VolumeError
        If the affine (4, 4) has values that are not finite or linearly dependent axes.
    """
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)  # (3,)
    regular = np.isfinite(affine).all() and (lengths > 0).all()
    if regular and abs(np.linalg.det(columns / lengths)) > SINGULAR_TOLERANCE:
        return
    raise VolumeError(
        f"{path} has the affine {np.round(affine, 4).tolist()}, which is singular or not finite; "
        "three independent voxel axes are needed. Repair the header (sform, qform, voxel sizes) or "
        "convert the study again."
    )


def check_dtype(dtype: np.dtype[Any], path: Path) -> None:
    """Refuse voxels that are not one real number each.

    Raises
    ------
    VolumeError
        If voxels are structures (colour) or complex numbers.
    """
    if dtype.names is not None:
        raise VolumeError(
            f"{path} has colour voxels with the fields {dtype.names}; one grey value per voxel is "
            "needed. Use the series from which the colour map was made, or export one channel."
        )
    if dtype.kind == "c":
        raise VolumeError(
            f"{path} has complex voxels ({dtype}); real ones are needed. Export the magnitude "
            "image, for example numpy.abs of the data."
        )


def check_values(values: NDArray[np.float32], path: Path) -> None:
    """Refuse voxels that are not finite, and images without any contrast.

    Raises
    ------
    VolumeError
        If voxels (X, Y, Z) are NaN or infinite, or all the same.
    """
    low, high = values.min(), values.max()  # NaN and infinity show in these two
    if not np.isfinite(low) or not np.isfinite(high):
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        raise VolumeError(
            f"{path} has {nan} NaN and {infinite} infinite voxels of {values.size}; finite values "
            "within the range of float32 are needed. Replace them first, for example by "
            "numpy.nan_to_num, or fix the step that made them."
        )
    if low == high:
        raise VolumeError(
            f"{path} is constant: every voxel is {float(low):g}. An image with contrast is needed; "
            "check that the export is complete and that this is the right file."
        )


def check_not_label_map(values: NDArray[np.float32], path: Path, *, picture: bool = False) -> None:
    """Refuse a segmentation that was given in place of an image.

    Of a picture only the number of its grey levels counts.

    Raises
    ------
    VolumeError
        If the voxels (X, Y, Z) are few whole numbers in large uniform regions.
    """
    if picture:
        few = np.unique(values).size <= LABEL_MAX_PICTURE_VALUES
        found = few and values.size >= LABEL_MIN_VOXELS
    else:
        found = looks_like_label_map(values)
    if found:
        raise_label_map(path, "its voxels are few whole numbers in large uniform regions")


def raise_label_map(path: Path, reason: str) -> None:
    """Raise the error for a label map.

    Raises
    ------
    VolumeError
        Always.
    """
    raise VolumeError(
        f"{path} looks like a label map or a mask ({reason}); an image with grey values is needed. "
        "Give the image that was segmented; a lesion mask belongs under the label key."
    )


def looks_like_label_map(values: NDArray[np.float32]) -> bool:
    """Tell labels from grey values by their number and by how often neighbours are equal.

    Voxels at the minimum, at the maximum and at the most frequent value do not count: these are
    air, saturated and padded regions, which are uniform in images as well.
    """
    if values.size < LABEL_MIN_VOXELS:
        return False
    # a part of the voxels decides for most images: all voxels have at least as many values
    part = values.ravel(order="K")[:: max(1, values.size // LABEL_SAMPLE)]
    if np.unique(part).size > LABEL_MAX_VALUES or not _whole_numbers(part):
        return False
    if not _whole_numbers(values):
        return False
    low = float(values.min())
    high = float(values.max())
    if high - low > np.iinfo(np.uint16).max:
        return False
    levels = (values - low).astype(np.uint16)
    found = counts(levels, int(high - low) + 1)
    present = np.flatnonzero(found)
    if not 2 < len(present) <= LABEL_MAX_VALUES:
        return len(present) == 2
    background = (present[0], present[-1], found.argmax())
    return _equal_neighbours(levels, background) > LABEL_EQUAL_NEIGHBOURS


def _whole_numbers(values: NDArray[np.float32]) -> bool:
    return bool((values == np.rint(values)).all())


def _equal_neighbours(levels: NDArray[np.uint16], background: Sequence[Any]) -> float:
    """Share of equal neighbours outside the background, the smaller of the two longest axes."""
    axes = sorted(range(levels.ndim), key=lambda a: -levels.shape[a])[:2]
    shares = []
    for axis in (a for a in axes if levels.shape[a] > 1):
        moved = np.moveaxis(levels, axis, 0)
        first, second = moved[:-1], moved[1:]
        inside = (first != background[0]) & (first != background[1]) & (first != background[2])
        count = int(inside.sum())
        shares.append(float(((first == second) & inside).sum()) / count if count else 0.0)
    return min(shares)
