"""ReLU and dropout in one step, which costs less than the layers around it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.randomness import generator

LANES = 4
"""16-bit numbers in one 64-bit word of the generator."""

#: Integers as wide as the floating-point numbers, by which these are blanked out.
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class DroppingReLU(nn.Module):
    """`relu`, then `torch.nn.Dropout`, fast on a CPU.

    There PyTorch draws one random number for each element in one thread, writes a mask in floating
    point and multiplies by it. Here one 64-bit draw serves four elements with 16 bits each, so that
    the probability is right to 1 / 131072; integers blank out what is dropped; and the gradient
    goes where the output is not zero, so that neither mask nor input is kept for it. The numbers
    come from the global generator, as PyTorch's do, or from the thread's own (`randomness`).
    Elsewhere, in evaluation and in a compiled graph, this is PyTorch's own.

    Parameters
    ----------
    p : float
        Probability with which an element is dropped.

    Raises
    ------
    ValueError
        If `p` is not between 0 and 1.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"the dropout is {p}; it must lie between 0 and 1.")
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Activate a tensor of any shape."""
        fast = input.device.type == "cpu" and input.dtype in BITS and 0 < self.p < 1
        if not self.training or not fast or torch.compiler.is_compiling():
            return F.dropout(input.relu(), self.p, self.training)
        return _DroppingReLU.apply(input, self.p)

    def extra_repr(self) -> str:
        """As shown inside the module's representation."""
        return f"p={self.p}"


class _DroppingReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, probability: float) -> Tensor:
        output = input.clamp_min(0)
        integers = BITS[output.dtype]
        output.view(integers).bitwise_and_(kept(input.shape, probability).to(integers))
        ctx.scale = 1 / (1 - probability)
        output.mul_(ctx.scale)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, output, 0).mul_(ctx.scale), None


def kept(shape: torch.Size, probability: float) -> Tensor:
    """All bits of a 16-bit integer set, or with the given probability none; of the given shape."""
    words = torch.empty(-(-shape.numel() // LANES), dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator())
    bits = words.view(torch.int16)[: shape.numel()].view(shape)  # uniform in ±2¹⁵
    limit = 2**15 - round(probability * 2**16)
    # −1 below the limit and 0 from there on, by operations that are vectorised for integers
    return bits.clamp_(limit - 1, limit).sub_(limit)
