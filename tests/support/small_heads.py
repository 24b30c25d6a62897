"""A head that trains in milliseconds, for the features that come with it or those of an encoder."""

from __future__ import annotations

from typing import Any

import torch

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.head import MCMIADHead, build_head
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import encode_hashing

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


def small_detector(
    encoder: FrozenEncoder, score: AnomalyScore | None = None, **options: Any
) -> MCMIADDetector:
    """Of an encoder, with a small head and random weights, for inference."""
    of_encoder = {
        "seed": 0,
        "in_channels": encoder.out_channels,
        "stage_channels": encoder.stage_channels,
        "prior": encode_hashing(["healthy"], dim=32),
        "grid": encoder.grid,
    }
    return MCMIADDetector(encoder, small_head(**{**of_encoder, **options}), score).eval()
