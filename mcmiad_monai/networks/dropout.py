"""Dropout whose random numbers do not cost more than the layer that it follows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANES = 4
"""16-bit numbers in one 64-bit word of the generator."""


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with cheap random numbers on a CPU.

    There PyTorch draws one random number for each element in one thread, which is a sixth of a
    training step of the head in bfloat16. Here one 64-bit draw serves four elements with 16 bits
    each, so that the probability is right to 1 / 131072. The numbers come from the global
    generator, as PyTorch's do. Elsewhere, and in evaluation, this is PyTorch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of a tensor of any shape."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1:
            return F.dropout(input, self.p, self.training)
        return input * keep(input, self.p)


def keep(like: Tensor, probability: float) -> Tensor:
    """Zero with the given probability, 1 / (1 − probability) otherwise; shaped as `like`."""
    words = torch.empty(-(-like.numel() // LANES), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)  # uniform in ±2¹⁵
    kept = bits >= round(probability * 2**16) - 2**15
    return kept.to(like.dtype).div_(1 - probability)
