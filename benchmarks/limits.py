"""What the matrix products of the default network cost, and how fast this machine multiplies.

    python benchmarks/limits.py [--repeats 7]

Operations of one slice (encoder, head, score) and of one slice of a training step (head alone,
forward and backward), counted by PyTorch with attention written out, two for a multiply-add; the
best rate of a square product in each precision; and the limits that follow: no exact engine and no
training step can be faster. Element-wise work and memory come on top. Weights are random, which
costs the same.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from engines import default_detector
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcmiad_monai.losses import ReconstructionLoss
from mcmiad_monai.precision import PRECISIONS, slowdown

SLICES = 16
SIDE = 4096
"""Of the square matrices: large enough to be at the processor's limit."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    inference, training = operations()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"a slice of inference {inference / 1e9:.2f} GFLOP, of training {training / 1e9:.2f}")
    print(f"{'products':<12}{'GFLOP/s':>10}{'slices/s, at most':>20}{'s a step, at least':>20}")
    for name in PRECISIONS:
        if slowdown(name) > 1 and name != "float32":
            print(f"{name:<12}{'this processor has no instructions for it':>50}")
            continue
        rate = product_rate(getattr(torch, name), options.repeats)
        step = SLICES * training / rate
        print(f"{name:<12}{rate / 1e9:>10.0f}{rate / inference:>20.1f}{step:>20.3f}")


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


def product_rate(dtype: torch.dtype, repeats: int) -> float:
    """Operations a second of the fastest of several square products."""
    left, right = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - start)
    return float(2 * SIDE**3 / min(times[1:]))


if __name__ == "__main__":
    main()
