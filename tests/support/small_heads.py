"""A head that trains in milliseconds, for the features that come with it."""

from __future__ import annotations

from typing import Any

import torch

from mcmiad_monai.networks.head import MCMIADHead, build_head

CHANNELS, GRID = 6, 4

#: Options of a head without noise, so that two ways to train can be compared.
QUIET = {"dropout": 0.0, "jitter_scale": 0.0}


def small_head(**options: Any) -> MCMIADHead:
    """Of features (B, CHANNELS, GRID, GRID)."""
    default: dict[str, Any] = {
        "seed": 3,
        "in_channels": CHANNELS,
        "stage_channels": (2, 4),
        "prior": torch.eye(3, 8),
        "dim": 16,
        "heads": 4,
        "hidden": 24,
        "grid": GRID,
        "rounds": 2,
        "neighbourhood": 3,
    }
    return build_head(**{**default, **options})
