"""Slice maps back to the planes, the volume and the geometry from which the slices were cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from mcmiad_monai.transforms.metadata import plain, with_metadata_of
from mcmiad_monai.transforms.resize import resize_bilinear


def restore_maps(maps: torch.Tensor, *, plane_shape: Sequence[int]) -> torch.Tensor:
    """Resize maps to the slice's own size (§3.6) and turn rows and columns back into axes.

    Parameters
    ----------
    maps : (n, 1, h, w) tensor
        One map for each slice: rows = y, columns = x.
    plane_shape : (X, Y)
        Size of the slice in the volume.

    Returns
    -------
    (n, X, Y) tensor
        Planes in the order of the volume's axes.
    """
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ValueError(f"maps have shape {tuple(maps.shape)}; (n, 1, h, w) is expected.")
    x, y = plane_shape
    resized = resize_bilinear(plain(maps), (y, x))  # (n, 1, Y, X)
    return resized[:, 0].transpose(1, 2)  # (n, X, Y)


def insert_slices(
    volume_out: torch.Tensor, planes: torch.Tensor, indices: Sequence[int], *, axis: int
) -> None:
    """Write planes into a volume, in place.

    Parameters
    ----------
    volume_out : (1, X, Y, Z) tensor
        Changed in place; other slices are left alone.
    planes : (n, X, Y) tensor
        The two axes that remain without the slice axis.
    indices : sequence of int
        Where each plane goes along `axis`.
    axis : {0, 1, 2}
        Spatial axis across which slices lie.
    """
    target = plain(volume_out)[0].movedim(axis, 0)  # (N, X, Y), a view
    if len(indices) != len(planes):
        raise ValueError(
            f"{len(planes)} planes were given for {len(indices)} slice indices; one for each is "
            "expected."
        )
    target[list(indices)] = planes.to(device=target.device, dtype=target.dtype)


def as_heatmap(array: torch.Tensor | NDArray[Any], like: MetaTensor) -> MetaTensor:
    """Give an array the geometry of the volume that it describes, so that Invertd can take it home.

    Parameters
    ----------
    array : (1, X, Y, Z) tensor or ndarray
        Heatmap on the grid of `like`.
    like : (1, X, Y, Z) MetaTensor
        The volume, whose colours do not count; its affine, metadata and trace are copied.

    Raises
    ------
    ValueError
        If the two have different grids.
    """
    values = torch.from_numpy(array) if isinstance(array, np.ndarray) else plain(array)
    if values.ndim != like.ndim or values.shape[-3:] != like.shape[-3:]:
        raise ValueError(
            f"a heatmap of shape {tuple(values.shape)} does not fit a volume of shape "
            f"{tuple(like.shape)}; equal shapes are expected. Restore it to the volume's grid."
        )
    return with_metadata_of(values.to(torch.float32), like)
