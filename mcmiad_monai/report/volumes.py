"""A study as its page shows it: image and heat on one grid in RAS order, without names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from scipy import ndimage

from mcmiad_monai.inference.montage import WINDOW_PERCENTILES
from mcmiad_monai.inference.overlay import OverlayError
from mcmiad_monai.transforms import load_heatmap, load_volume
from mcmiad_monai.transforms.intensity import CT_WINDOW

Array = NDArray[Any]
#: Largest difference in millimetres of two affines of one grid.
SAME_GRID = 1e-3


@dataclass(frozen=True)
class Shown:
    """A study in RAS order.

    Attributes
    ----------
    heat : (X, Y, Z) ndarray of float32
        In thresholds.
    affine : (4, 4) ndarray
        In RAS millimetres.
    image : (X, Y, Z) ndarray of uint8, optional
        In its grey window; None where the image is not there.
    source_affine : (4, 4) ndarray
        Of the study's own array.
    """

    heat: Array
    affine: NDArray[np.float64]
    image: Array | None
    source_affine: NDArray[np.float64]

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Size of a voxel in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def voxel(self, place: Array) -> NDArray[np.float64]:
        """A place (3,) in millimetres as indices of these arrays, with fractions."""
        offset = np.asarray(place, np.float64) - self.affine[:3, 3]
        return np.asarray(np.linalg.solve(self.affine[:3, :3], offset), np.float64)


def load_shown(
    heatmap: Path, image: str | Path | None, *, viewer: Path | None = None, ct: bool = False
) -> Shown:
    """Load what a page shows of a volume.

    Parameters
    ----------
    heatmap : path
        On the study's own grid.
    image : path, optional
        The study.
    viewer : path, optional
        The heatmap on an upright grid, of a study on a sheared one; the image follows it there.
    ct : bool
        Whether the image is in Hounsfield units, which have a window of their own.

    Raises
    ------
    OverlayError
        If image and heatmap do not lie on one grid.
    VolumeError
        If a file cannot be read.
    """
    heat = load_heatmap(heatmap)
    own = heat.affine.numpy()
    values, affine = heat.numpy()[0], own
    grey = None
    if image is not None:
        study = load_volume(image)
        if study.shape != heat.shape or not np.allclose(study.affine, own, atol=SAME_GRID):
            raise OverlayError(
                f"the image {tuple(study.shape[1:])} does not lie on the grid of its heatmap "
                f"{tuple(heat.shape[1:])}; name the source that the heatmap was made from."
            )
        grey = windowed(study.numpy()[0], ct=ct)
    if viewer is not None:
        copy = load_heatmap(viewer)
        values, affine = copy.numpy()[0], copy.affine.numpy()
        if grey is not None:
            to_own = np.linalg.solve(own, affine)
            matrix, offset, shape = to_own[:3, :3], to_own[:3, 3], values.shape
            grey = ndimage.affine_transform(grey, matrix, offset, shape, order=1)
    turn = orientations.io_orientation(affine)
    turned = affine @ orientations.inv_ornt_aff(turn, values.shape)
    as_ras = orientations.apply_orientation
    return Shown(
        np.ascontiguousarray(as_ras(values, turn)),
        turned,
        None if grey is None else np.ascontiguousarray(as_ras(grey, turn)),
        own,
    )


def windowed(image: Array, *, ct: bool = False) -> NDArray[np.uint8]:
    """An image in grey levels 0 to 255, of any shape.

    CT in the window that the network sees; others between percentiles of what is above 0.
    """
    if ct:
        low, high = CT_WINDOW
    else:
        inside = image[image > 0]
        if inside.size == 0:
            return np.zeros(image.shape, np.uint8)
        low, high = np.percentile(inside[:: max(1, inside.size // 1_000_000)], WINDOW_PERCENTILES)
        low = min(float(low), 0.0) if image.min() >= 0 else float(low)
    grey = (np.asarray(image, np.float32) - low) * (255 / max(float(high) - low, 1e-12))
    return np.asarray(np.rint(np.clip(grey, 0, 255)), np.uint8)


def shrink(
    array: Array, affine: NDArray[np.float64], steps: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Means of blocks of voxels, and the affine of these; the last blocks repeat the edge.

    Parameters
    ----------
    array : (X, Y, Z) ndarray
    affine : (4, 4) ndarray
    steps : (int, int, int)
        Voxels of a block along each axis.
    """
    smaller = affine.copy()
    smaller[:3, :3] = affine[:3, :3] * np.asarray(steps)
    smaller[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((np.asarray(steps) - 1) / 2)
    if steps == (1, 1, 1):
        return np.asarray(array, np.float32), smaller
    fill = [(0, -size % step) for size, step in zip(array.shape, steps, strict=True)]
    whole = np.pad(np.asarray(array, np.float32), fill, mode="edge")
    (x, y, z), (i, j, k) = whole.shape, steps
    blocks = whole.reshape(x // i, i, y // j, j, z // k, k)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32), smaller


def steps_to_fit(
    shape: tuple[int, ...], zooms: tuple[float, float, float], voxels: int
) -> tuple[int, int, int]:
    """Blocks by which a volume has at most so many voxels; the finest axes go first."""
    steps = np.ones(3, dtype=int)
    while np.prod(np.ceil(np.asarray(shape) / steps)) > voxels:
        size = np.asarray(zooms) * steps
        able = steps < np.asarray(shape)
        finest = size[able].min()
        steps += (size <= 1.01 * finest) & able
    return int(steps[0]), int(steps[1]), int(steps[2])


def header_bytes(
    shape: tuple[int, ...], affine: NDArray[np.float64], *, slope: float | None = None
) -> bytes:
    """A NIfTI header of uint8 that holds grid and slope, and nothing of the file it came from."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    if slope is not None:
        header.set_slope_inter(slope, 0)
    return bytes(header.binaryblock) + bytes(4)
