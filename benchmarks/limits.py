"""What the matrix products of the default network cost, and how fast this machine multiplies.

    python benchmarks/limits.py [--repeats 7] [--device cuda]

Operations of one slice (encoder, head, score) and of one slice of a training step (head alone,
forward and backward), counted by PyTorch with attention written out, two for a multiply-add; the
best rate of a square product in each precision; and the limits that follow: no exact engine and no
training step can be faster. Element-wise work and memory come on top. Weights are random, which
costs the same.

On a GPU most layers wait for memory rather than for products. There the roofline of a slice is
printed too: for every convolution and product of matrices the longer of its operations at the rate
of products and of its operands at the rate of a copy, each read or written once in a batch of 64.
Attention counts by its operations alone, and what lies between the layers not at all.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from engines import default_detector, place, wait
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.runtime.precision import PRECISIONS, slowdown

SLICES = 16
BATCH = 64
"""Slices in one call on a GPU, for which weights are read once."""
SIDE = 4096
"""Of the square matrices: large enough to be at the processor's limit."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    inference, training = operations()
    print(place(options.device))
    print(f"a slice of inference {inference / 1e9:.2f} GFLOP, of training {training / 1e9:.2f}")
    print(f"{'products':<12}{'GFLOP/s':>10}{'slices/s, at most':>20}{'s a step, at least':>20}")
    rates = {}
    for name in PRECISIONS:
        if options.device == "cpu" and name != "float32" and slowdown(name) > 1:
            print(f"{name:<12}{'this processor has no instructions for it':>50}")
            continue
        rate = rates[name] = product_rate(getattr(torch, name), options.repeats, options.device)
        step = SLICES * training / rate
        print(f"{name:<12}{rate / 1e9:>10.0f}{rate / inference:>20.1f}{step:>20.6f}")
    if options.device != "cpu":
        bandwidth = copy_rate(options.repeats, options.device)
        print(f"copy {bandwidth / 1e9:.0f} GB/s, read and written together")
        for name, rate in rates.items():
            seconds = roofline(rate, bandwidth, getattr(torch, name).itemsize)
            told = ", ".join(f"{part} {1 / s:.0f}" for part, s in seconds.items())
            print(f"{name}: roofline in slices/s: {told}, both {1 / sum(seconds.values()):.0f}")


def roofline(rate: float, bandwidth: float, itemsize: int) -> dict[str, float]:
    """Least seconds of a slice, of the encoder and of the head."""
    detector = default_detector()
    images = torch.rand(BATCH, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    seconds = {}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with Layers(rate, bandwidth / itemsize) as layers:
            features = detector.encoder(images)
        seconds["encoder"] = layers.seconds / BATCH
        with Layers(rate, bandwidth / itemsize) as layers:
            detector.head(features)
        seconds["head"] = layers.seconds / BATCH
    return seconds


class Layers(TorchDispatchMode):
    """Least seconds of the layers that run: by their operations, or by their operands' elements."""

    def __init__(self, rate: float, elements: float) -> None:
        super().__init__()
        self.rate, self.elements, self.seconds = rate, elements, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        known = flop_registry.get(func.overloadpacket)
        if known is not None:
            count = known(*args, **(kwargs or {}), out_val=output)
            operands = [value for value in (*args, output) if isinstance(value, Tensor)]
            moved = 0 if operands[0].ndim == 3 else sum(value.numel() for value in operands)
            self.seconds += max(count / self.rate, moved / self.elements)
        return output


def operations() -> tuple[float, float]:
    """Of matrix products and convolutions, for one slice of inference and of training."""
    detector = default_detector()
    images = torch.rand(SLICES, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as inference:
            detector.eval()(images)
        with torch.no_grad():
            features = detector.encoder(images)
        with FlopCounterMode(display=False) as training:
            ReconstructionLoss(cosine_weight=5.0)(detector.head.train()(features)).backward()
    return inference.get_total_flops() / SLICES, training.get_total_flops() / SLICES


def product_rate(dtype: torch.dtype, repeats: int, device: str = "cpu") -> float:
    """Operations a second of the fastest of several square products."""
    side = SIDE if device == "cpu" else 2 * SIDE
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / least(lambda: torch.mm(left, right), repeats, device)


def copy_rate(repeats: int, device: str) -> float:
    """Bytes a second, read and written, of the fastest of several copies on a GPU."""
    source = torch.ones(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / least(lambda: target.copy_(source), repeats, device)


def least(work: Callable[[], object], repeats: int, device: str) -> float:
    """Least seconds of several calls, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


if __name__ == "__main__":
    main()
