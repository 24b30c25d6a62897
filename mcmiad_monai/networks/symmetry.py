"""A heatmap mirrored about the midline of the foreground: what both sides have is no finding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UPRIGHT = 0.1
"""Weight of an upright midline against the foreground's own axis, as a share of its variance: a
round foreground has no axis of its own."""


def mirrored(maps: Tensor, foreground: Tensor) -> Tensor:
    """Mirror maps about the midline of their foreground; 0 where the counterpart is off the image.

    The midline goes through the centroid of the foreground, along its principal axis that is nearer
    to upright, so that a tilted head is mirrored about its own midline. What lies outside the
    foreground is mirrored too: the rim of one side often meets air on the other, which is warm.

    Parameters
    ----------
    maps : Tensor of shape (B, 1, H, W)
        Rows run along the midline of a foreground that is not tilted.
    foreground : Tensor of shape (B, 1, H, W), bool

    Returns
    -------
    Tensor of shape (B, 1, H, W)
    """
    inside = foreground.to(maps.dtype)
    height, width = maps.shape[-2:]
    y = _centres(height, maps)[:, None]  # (H, 1)
    x = _centres(width, maps)[None, :]  # (1, W)
    area = inside.sum((1, 2, 3)).clamp_min(1)  # (B,)

    def mean(values: Tensor) -> Tensor:
        return (inside[:, 0] * values).sum((1, 2)) / area  # (B,)

    centre_x, centre_y = mean(x), mean(y)
    off_x, off_y = x - centre_x[:, None, None], y - centre_y[:, None, None]  # (B, 1, W), (B, H, 1)
    spread_x, spread_y = mean(off_x.square()), mean(off_y.square())
    across = 2 * mean(off_x * off_y)
    # twice the angle of the axis, as a vector: it is upright at (-1, 0)
    longer_upright = spread_y >= spread_x
    cosine = -(spread_y - spread_x).abs() - UPRIGHT * (spread_x + spread_y) - 1e-12
    sine = torch.where(longer_upright, across, -across)
    length = (cosine.square() + sine.square()).sqrt()
    cosine, sine = (cosine / length)[:, None, None], (sine / length)[:, None, None]  # (B, 1, 1)
    source_x = centre_x[:, None, None] + cosine * off_x + sine * off_y  # (B, H, W)
    source_y = centre_y[:, None, None] + sine * off_x - cosine * off_y
    grid = torch.stack([source_x, source_y], dim=-1)  # (B, H, W, 2)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False)


def _centres(count: int, like: Tensor) -> Tensor:
    """Centres of pixels between -1 and 1, (count,)."""
    return (2 * torch.arange(count, dtype=like.dtype, device=like.device) + 1) / count - 1
