"""Volume to network slices, and where every network pixel lies in the patient.

A network slice is the plane across the slice axis with the two remaining axes (x, y), in order, as
columns and rows. Only this file and `restore` know that layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform
from monai.utils import TraceKeys
from numpy.typing import NDArray

from mcmiad_monai.transforms.metadata import check_volume, plain, with_metadata_of
from mcmiad_monai.transforms.resize import resize_bilinear
from mcmiad_monai.transforms.restore import insert_slices, restore_maps

NETWORK_SIZE = 224
"""Rows and columns of a network slice (§4.2)."""

MIN_FOREGROUND = 0.02
"""A slice with less foreground than this share of its pixels is background and skipped."""

SLICES = "slices"
"""Metadata key of `ExtractSlices`: indices, axis and source shape."""

Mode = Literal["bilinear", "nearest"]


def slice_batch(
    volume: torch.Tensor,
    indices: Sequence[int],
    *,
    axis: int = 2,
    size: int = NETWORK_SIZE,
    mode: Mode = "bilinear",
    context: int = 1,
) -> torch.Tensor:
    """Cut slices and resize them to the network's square.

    Parameters
    ----------
    volume : (1, X, Y, Z) tensor
        Normalised volume, or a mask with ``mode="nearest"``; of colours (3, X, Y, Z).
    indices : sequence of int
        Slices to cut, in the order of the result; negative ones count from the end.
    axis : {0, 1, 2}
        Spatial axis across which slices lie.
    size : int
        Rows and columns of the result.
    mode : {"bilinear", "nearest"}
        Bilinear is smoothed first where the plane shrinks; both follow the half-pixel convention.
    context : {1, 3}
        3 gives the slice between its neighbours, as three channels: previous, this, next. The first
        and the last slice of the volume are their own neighbours.

    Returns
    -------
    (n, 1, size, size) tensor
        Plain tensor, rows = y, columns = x; of colours or with a context of 3 (n, 3, size, size).

    Raises
    ------
    ValueError
        If the context is not known, or a context of 3 is asked for a volume of colours.
    """
    check_volume(volume)
    check_context(context, colours=volume.shape[0] == 3)
    if context == 3:
        return _with_neighbours(volume, indices, axis=axis, size=size, mode=mode)
    planes = plain(volume).movedim(1 + axis, 0)  # (N, 1, X, Y), a view
    chosen = planes[list(indices)].transpose(2, 3)  # (n, 1, Y, X)
    if mode == "nearest":
        return F.interpolate(chosen, size=(size, size), mode="nearest-exact")
    return resize_bilinear(chosen, (size, size))


def check_context(context: int, *, colours: bool) -> None:
    """Refuse a context that is not known, or that of three slices where colours are kept.

    Raises
    ------
    ValueError
        If so.
    """
    if context not in (1, 3):
        raise ValueError(
            f"context is {context!r}; it must be 1, the slice alone, or 3, the slice between its "
            "neighbours."
        )
    if context == 3 and colours:
        raise ValueError(
            "context 3 puts a slice and its two neighbours into the three channels that "
            "keep_colours needs; set keep_colours to false, or context to 1."
        )


def _with_neighbours(volume: torch.Tensor, indices: Sequence[int], **options: Any) -> torch.Tensor:
    """Previous, this and next slice as channels, (n, 3, size, size); each is resized once."""
    count = volume.shape[1 + options["axis"]]
    slices = [range(count)[k] for k in indices]
    near = torch.tensor(slices, dtype=torch.long)[:, None] + torch.tensor([-1, 0, 1])  # (n, 3)
    needed, places = near.clamp(0, count - 1).unique(return_inverse=True)
    return slice_batch(volume, needed.tolist(), **options)[places, 0]


def foreground_slices(
    volume: torch.Tensor, *, axis: int = 2, min_fraction: float = MIN_FOREGROUND
) -> list[int]:
    """Indices of the slices in which at least a share of the voxels is above 0.

    Parameters
    ----------
    volume : (1, X, Y, Z) tensor
        Normalised volume, 0 outside the foreground.
    axis : {0, 1, 2}
        Spatial axis across which slices lie.
    min_fraction : float
        Smallest share of foreground, 0 to 1; a slice without any foreground never counts.
    """
    check_volume(volume)
    slices = plain(volume)[0].unbind(axis)
    needed = max(min_fraction * slices[0].numel(), 1)
    # one by one: over the whole volume the sum would take nine bytes a voxel for a moment
    return [k for k, plane in enumerate(slices) if int((plane > 0).sum()) >= needed]


def select_slices(
    volume: MetaTensor,
    *,
    axis: int,
    slice_range: tuple[float, float] = (0.0, 1.0),
    min_foreground: float = MIN_FOREGROUND,
) -> list[int]:
    """Slices that are worth the network's time, in order.

    Parameters
    ----------
    volume : MetaTensor (1, X, Y, Z)
        Normalised.
    slice_range : (float, float)
        Share of the slices to look at, ``[int(a·n), int(b·n))``.
    """
    n = volume.shape[1 + axis]
    kept = foreground_slices(volume, axis=axis, min_fraction=min_foreground)
    inside = slices_in_range(n, slice_range)
    return [k for k in kept if inside.start <= k < inside.stop]


def slices_in_range(n: int, slice_range: Sequence[float]) -> slice:
    """Share of ``n`` slices as indices ``[int(a·n), int(b·n))``, at least one."""
    low, high = int(slice_range[0] * n), int(slice_range[1] * n)
    return slice(low, max(high, low + 1))


def slice_to_world(
    affine: torch.Tensor | NDArray[np.float64],
    volume_shape: Sequence[int],
    *,
    axis: int,
    index: int,
    size: int = NETWORK_SIZE,
) -> NDArray[np.float64]:
    """Matrix from network pixels to millimetres.

    Parameters
    ----------
    affine : (4, 4) tensor or ndarray
        Of the volume from which the slice was cut.
    volume_shape : sequence of int
        (X, Y, Z), or (1, X, Y, Z).
    axis, index, size : int
        As for `slice_batch`.

    Returns
    -------
    (4, 4) ndarray of float64
        Maps (column, row, 0, 1) at a pixel centre to the world; the third coordinate counts slices.
    """
    shape = tuple(volume_shape)[-3:]
    pixel_to_voxel = np.zeros((4, 4))
    pixel_to_voxel[3, 3] = 1.0
    columns, rows = (a for a in range(3) if a != axis)
    for pixel_axis, voxel_axis in ((0, columns), (1, rows)):
        scale = shape[voxel_axis] / size
        pixel_to_voxel[voxel_axis, pixel_axis] = scale
        pixel_to_voxel[voxel_axis, 3] = 0.5 * scale - 0.5  # centres, not corners, are counted
    pixel_to_voxel[axis, 2] = 1.0
    pixel_to_voxel[axis, 3] = index % shape[axis]
    return np.asarray(affine, dtype=np.float64) @ pixel_to_voxel


class ExtractSlices(InvertibleTransform):
    """A volume as a stack of network slices that remembers where each one came from.

    The inverse takes a stack of maps of any resolution, one for each slice, and returns the volume
    on the source grid with the source affine, zero in slices that were not cut.

    Parameters
    ----------
    axis : {0, 1, 2}
        Spatial axis across which slices lie.
    size : int
        Rows and columns of a slice.
    indices : sequence of int, optional
        Slices to cut; by default those with enough foreground.
    min_fraction : float
        Smallest share of foreground of a slice that is cut by default.
    mode : {"bilinear", "nearest"}
        ``"nearest"`` for masks.
    """

    def __init__(
        self,
        *,
        axis: int = 2,
        size: int = NETWORK_SIZE,
        indices: Sequence[int] | None = None,
        min_fraction: float = MIN_FOREGROUND,
        mode: Mode = "bilinear",
    ) -> None:
        self.axis = axis
        self.size = size
        self.indices = None if indices is None else list(indices)
        self.min_fraction = min_fraction
        self.mode = mode

    def __call__(self, volume: MetaTensor) -> MetaTensor:
        """Cut a volume (1, X, Y, Z) into slices (N, 1, size, size).

        Raises
        ------
        ValueError
            If no slice has enough foreground.
        """
        indices = self.indices
        if indices is None:
            indices = foreground_slices(volume, axis=self.axis, min_fraction=self.min_fraction)
        return self.cut(volume, indices)

    def cut(self, volume: MetaTensor, indices: Sequence[int]) -> MetaTensor:
        """Cut the given slices of a volume (1, X, Y, Z) into (N, 1, size, size).

        Raises
        ------
        ValueError
            If there are none.
        """
        if not indices:
            raise ValueError(
                f"no slice of the volume {tuple(volume.shape)} along axis {self.axis} has "
                f"{self.min_fraction:.1%} of foreground; at least one is needed. Lower "
                "min_fraction, give the indices, or check the normalisation."
            )
        batch = slice_batch(volume, indices, axis=self.axis, size=self.size, mode=self.mode)
        stack = with_metadata_of(batch, volume)  # (N, 1, size, size)
        origin = {
            "indices": list(indices),
            "axis": self.axis,
            "source_shape": list(volume.shape[1:]),
        }
        stack.meta[SLICES] = origin
        extra = {**origin, "affine": volume.affine.cpu().numpy().copy()}
        self.push_transform(stack, orig_size=tuple(volume.shape[1:]), extra_info=extra)
        return stack

    def inverse(self, maps: MetaTensor) -> MetaTensor:
        """Put maps (N, 1, h, w) back into a volume (1, X, Y, Z)."""
        origin: dict[str, Any] = self.pop_transform(maps)[TraceKeys.EXTRA_INFO]
        axis, shape = origin["axis"], origin["source_shape"]
        plane_shape = tuple(size for a, size in enumerate(shape) if a != axis)
        volume = torch.zeros((1, *shape), dtype=maps.dtype, device=maps.device)
        planes = restore_maps(plain(maps), plane_shape=plane_shape)  # (N, X, Y)
        insert_slices(volume, planes, origin["indices"], axis=axis)
        out = with_metadata_of(volume, maps)
        out.affine = torch.from_numpy(np.array(origin["affine"], dtype=np.float64))
        out.meta.pop(SLICES, None)
        return out
