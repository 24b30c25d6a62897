"""Feature jitter (§3.4, Eq. 3): noise in training that the decoder learns to remove."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureJitter(nn.Module):
    """Add Gaussian noise in proportion to each token's norm; the identity in evaluation.

    x + ε · ‖x‖₂ / C · scale, with ε ~ N(0, 1) for each element and the norm of each token.

    Parameters
    ----------
    scale : float
        Noise scale.
    probability : float
        Probability that a sample is jittered.

    Raises
    ------
    ValueError
        If `scale` is negative or `probability` not in [0, 1].
    """

    def __init__(self, scale: float = 20.0, probability: float = 1.0) -> None:
        super().__init__()
        if scale < 0 or not 0 <= probability <= 1:
            raise ValueError(
                f"jitter has scale {scale} and probability {probability}; "
                "the scale must be >= 0 and the probability in [0, 1]."
            )
        self.scale, self.probability = scale, probability

    def forward(self, tokens: Tensor) -> Tensor:
        """Jitter tokens of shape (B, N, C)."""
        if not self.training or self.scale == 0 or self.probability == 0:
            return tokens
        norm = tokens.norm(dim=-1, keepdim=True)  # (B, N, 1)
        noise = torch.randn_like(tokens) * norm * (self.scale / tokens.shape[-1])  # (B, N, C)
        chance = torch.full_like(tokens[:, :1, :1], self.probability)  # (B, 1, 1)
        return tokens + noise * torch.bernoulli(chance)

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"scale={self.scale}, probability={self.probability}"
