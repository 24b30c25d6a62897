"""Slices through a network on a GPU, in the form that is fastest there."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.runtime.precision import Precision, ProductsIn

#: Slices in one call on an accelerator: some 3 GB of activations at most for EfficientNet-B4.
ACCELERATOR_SLICES = 64
#: How images lie in memory; convolutions of each type have their fastest kernels in one of them.
LAYOUTS: dict[Precision, torch.memory_format] = {
    "float32": torch.contiguous_format,
    "bfloat16": torch.channels_last,
}


def accelerated(
    network: nn.Module,
    device: torch.device,
    precision: Precision = "float32",
    *,
    compiled: bool = False,
) -> nn.Module:
    """Ready a slice network for inference on a GPU.

    Parameters
    ----------
    network : nn.Module
        Maps images (B, 1, S, S) to a tensor (B, …); BatchNorms folded. Left as it is.
    compiled : bool
        Let `torch.compile` fuse what passes over memory, which takes half a minute at the first
        call, and needs a C compiler.
    """
    own = copy.deepcopy(network).to(device).to(memory_format=LAYOUTS[precision]).eval()
    if precision == "bfloat16":
        for module in own.modules():
            if isinstance(module, nn.Conv2d):  # once, where autocast would convert in each call
                module.to(torch.bfloat16)
    if not compiled:
        return ProductsIn(own, precision)
    own.compile(dynamic=False)
    return FixedBatches(ProductsIn(own, precision))


class FixedBatches(nn.Module):
    """A slice network that always sees batches of one size, the last one filled up.

    Parameters
    ----------
    network : nn.Module
        Maps images (B, 1, S, S) to a tensor (B, …).
    slices_at_once : int
        The size.
    """

    def __init__(self, network: nn.Module, slices_at_once: int = ACCELERATOR_SLICES) -> None:
        super().__init__()
        self.network, self.slices_at_once = network, slices_at_once

    def forward(self, image: Tensor) -> Tensor:
        """Map any number of images."""
        return torch.cat([self._filled_up(part) for part in image.split(self.slices_at_once)])

    def _filled_up(self, part: Tensor) -> Tensor:
        missing = self.slices_at_once - part.shape[0]
        full = F.pad(part, (0, 0) * (part.ndim - 1) + (0, missing)) if missing else part
        output: Tensor = self.network(full)
        return output[: part.shape[0]]
