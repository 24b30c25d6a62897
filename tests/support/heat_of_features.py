"""A detector without a network: its heat is its first feature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mcmiad_monai.networks.score import AnomalyScore

GRID, SIZE = 4, 32


class HeatOfFeatures(torch.nn.Module):
    """Features (B, C, GRID, GRID) to heatmaps (B, 1, SIZE, SIZE)."""

    heat_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.score = AnomalyScore()
        self.register_buffer("heat_scale", torch.ones(()))

    def heatmap_from_features(
        self, features: Tensor, _where: Any, _intensity: Any = None
    ) -> Tensor:
        heat = features[:, :1].repeat_interleave(SIZE // GRID, 2)
        return heat.repeat_interleave(SIZE // GRID, 3) / self.heat_scale
