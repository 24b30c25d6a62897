"""Seconds and memory of the pixel metrics over more and more pixels, and their error.

    python benchmarks/pixel_metrics.py [--pixels 1e6 1e7 1e8 2e8]

Pixels come as batches of 10 made-up heatmaps of 224 × 224, each batch a new one; half of the images
have a round lesion. Making them is not timed. Each row is measured in a process of its own, whose
peak memory stands beside what it had before the first update. Errors are the largest difference of
AUROC, average precision and best F1 to scikit-learn, on all pixels in memory, up to 1e6 pixels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from ignite.metrics import Metric
from torch import Tensor

from mcmiad_monai.metrics.curves import auroc, average_precision, f1_max
from mcmiad_monai.metrics.pixels import PixelMetrics
from mcmiad_monai.metrics.regions import AUPRO

IMAGES, SIZE = 10, 224
EXACT_UP_TO = 1_000_000
"""Above this, sorting all pixels in memory takes what streaming is there to spare."""


class Row(NamedTuple):
    """One line of the table: seconds, MB, and differences."""

    pixels: int
    seconds: float
    aupro_seconds: float
    before: float
    peak: float
    exact_seconds: float
    error: float


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pixels", type=float, nargs="+", default=[1e6, 1e7, 1e8, 2e8])
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    heads = ["pixels", "pixel s", "AUPRO s", "before MB", "peak MB", "sklearn s", "error"]
    print("".join(f"{head:>12}" for head in heads))
    # a new process for each row: the peak of a process never falls
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(measure, map(int, options.pixels)):
            print(
                f"{row.pixels:>12.0e}{row.seconds:>12.2f}{row.aupro_seconds:>12.2f}"
                f"{row.before:>12.0f}{row.peak:>12.0f}{row.exact_seconds:>12.2f}{row.error:>12.1e}",
                flush=True,
            )


def measure(pixels: int) -> Row:
    """Stream at least so many pixels through the metrics."""
    warm_up()
    kept: list[tuple[Tensor, Tensor]] = []
    pixel, aupro, before = PixelMetrics(), AUPRO(), peak_memory()
    seconds, aupro_seconds, count = 0.0, 0.0, 0
    for batch in batches(pixels):
        seconds += timed(pixel, batch)
        aupro_seconds += timed(aupro, batch)
        count += batch[0].numel()
        if pixels <= EXACT_UP_TO:
            kept.append(batch)
    start = time.perf_counter()
    found = pixel.compute()
    seconds += time.perf_counter() - start
    peak = peak_memory()
    start = time.perf_counter()
    error = difference(found, kept) if kept else float("nan")
    exact = time.perf_counter() - start if kept else float("nan")
    return Row(count, seconds, aupro_seconds, before, peak, exact, error)


def batches(pixels: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Heatmaps and masks (10, 1, 224, 224), at least so many pixels."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(SIZE)
    for _ in range(-(-pixels // (IMAGES * SIZE**2))):
        centre = torch.randint(40, SIZE - 40, (2, IMAGES, 1, 1), generator=generator)
        radius = torch.randint(2, 25, (IMAGES, 1, 1), generator=generator)
        radius[::2] = 0
        squared = (axis[:, None] - centre[0]) ** 2 + (axis - centre[1]) ** 2  # (10, 224, 224)
        mask = (squared < radius**2)[:, None]
        noise = torch.randn(mask.shape, generator=generator)
        yield torch.exp(0.7 * noise + 1.5 * mask - 1), mask


def warm_up() -> None:
    """Let what is loaded and reserved at first use not count as the metrics' own."""
    for metric in (PixelMetrics(), AUPRO()):
        for batch in batches(1):
            metric.update(batch)
        metric.compute()


def timed(metric: Metric, batch: tuple[Tensor, Tensor]) -> float:
    """Seconds of one update."""
    start = time.perf_counter()
    metric.update(batch)
    return time.perf_counter() - start


def difference(found: dict[str, float], kept: list[tuple[Tensor, Tensor]]) -> float:
    """Largest difference to the exact figures."""
    scores, labels = (torch.cat([batch[i].flatten() for batch in kept]).numpy() for i in (0, 1))
    exact = {
        "pixel_auroc": auroc(scores, labels),
        "pixel_ap": average_precision(scores, labels),
        "pixel_f1_max": f1_max(scores, labels).f1,
    }
    return float(np.max([abs(found[name] - value) for name, value in exact.items()]))


def peak_memory() -> float:
    """Peak resident memory of this process, MB."""
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
