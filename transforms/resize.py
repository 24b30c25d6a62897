"""Bilinear resizing of planes, by the half-pixel convention."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def resize_bilinear(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize planes (n, 1, rows, columns), smoothed first along axes that shrink.

    torch's antialiased kernel repeats the first row where the input or the output is one column
    wide (seen with torch 2.14 on a CPU), so such planes are resized lying on their side.
    """
    antialias = planes.shape[-2] > size[0] or planes.shape[-1] > size[1]
    if antialias and 1 in (planes.shape[-1], size[1]):
        return _resize(planes.transpose(2, 3), (size[1], size[0]), antialias).transpose(2, 3)
    return _resize(planes, size, antialias)


def _resize(planes: torch.Tensor, size: tuple[int, int], antialias: bool) -> torch.Tensor:
    return F.interpolate(
        planes, size=size, mode="bilinear", align_corners=False, antialias=antialias
    )
