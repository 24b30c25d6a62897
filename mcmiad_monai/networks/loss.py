"""The training loss: squared error of the features, with the experts' balance (§3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.head import HeadOutput
from mcmiad_monai.networks.score import channel_weights


class ReconstructionLoss(nn.Module):
    """MSE + balance_weight · CV² + cosine_weight · mean(1 − cos).

    Parameters
    ----------
    balance_weight : float
        Weight of the experts' balance.
    cosine_weight : float
        Weight of the cosine distance; 0 in the paper.
    stage_weights : sequence of float, optional
        One weight for each encoder stage. The squared error becomes the weighted mean over
        channels, so equal weights are the plain MSE.
    stage_channels : sequence of int, optional
        Channels of the stages; needed with `stage_weights`.

    Raises
    ------
    ValueError
        If `stage_weights` does not fit `stage_channels`.
    """

    weights: Tensor | None

    def __init__(
        self,
        *,
        balance_weight: float = 0.01,
        cosine_weight: float = 0.0,
        stage_weights: Sequence[float] | None = None,
        stage_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.balance_weight, self.cosine_weight = balance_weight, cosine_weight
        weights = channel_weights(stage_weights, stage_channels)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, output: HeadOutput, _label: Any = None) -> Tensor:
        """Loss of one batch; the second argument is there for trainers that pass a label."""
        target, restored = output.target.float(), output.reconstruction.float()  # (B, C, H, W)
        loss = self._squared_error(target, restored)
        if self.cosine_weight:
            cosine = F.cosine_similarity(target, restored, dim=1)  # (B, H, W)
            loss = loss + self.cosine_weight * (1 - cosine).mean()
        return loss + self.balance_weight * output.balance_loss

    def _squared_error(self, target: Tensor, restored: Tensor) -> Tensor:
        if self.weights is None:
            return F.mse_loss(restored, target)
        error = (restored - target).square().mean(dim=(0, 2, 3))  # (C,)
        return torch.dot(error, self.weights) / self.weights.sum()
