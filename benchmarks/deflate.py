"""Seconds and megabytes of a heatmap and a mask of 240 × 240 × 155, by deflate and level.

    python benchmarks/deflate.py [--repeats 3]

The heatmap is what the network gives in kind: float32, bilinear from a grid of 14 × 14, zero
outside a generated head. Libraries that are not installed are named so.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from mcmiad_monai.inference.writers import GZIP_LEVEL
from mcmiad_monai.phantom.brain import make_phantom

SHAPE = (240, 240, 155)
#: Grey values below this are air in the phantom.
AIR = 0.05


def volumes() -> dict[str, bytes]:
    """Bytes of a heatmap and of its mask, as NIfTI orders them."""
    head = torch.as_tensor(np.asarray(make_phantom(0, shape=SHAPE, orientation="LPS").image))
    inside = head > AIR * head.max()
    grid = torch.rand(SHAPE[2], 1, 14, 14, generator=torch.Generator().manual_seed(0))
    planes = F.interpolate(grid, SHAPE[:2], mode="bilinear")[:, 0].permute(1, 2, 0)
    heat = (planes * inside).numpy()
    return {
        "heatmap": np.asarray(heat, dtype=np.float32).tobytes(order="F"),
        "mask": np.asarray(heat > 0.9, dtype=np.uint8).tobytes(order="F"),
    }


def deflates() -> Iterator[tuple[str, Callable[[bytes], bytes] | None]]:
    """Every library and level; None where a library is not installed."""
    for level in (1, 3, 6, 9):
        yield f"zlib {level}", lambda data, n=level: gzip.compress(data, n)  # type: ignore[misc]
    others = {"ISA-L": ("isal.igzip", (0, 1, 2)), "zlib-ng": ("zlib_ng.gzip_ng", (1, 2, 6))}
    for name, (module, levels) in others.items():
        try:
            library = importlib.import_module(module)
        except ImportError:
            yield name, None
            continue
        for level in levels:
            used = " (used)" if (name, level) == ("ISA-L", GZIP_LEVEL) else ""
            yield (
                f"{name} {level}{used}",
                lambda data, n=level, lib=library: lib.compress(data, compresslevel=n),  # type: ignore[misc]
            )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    data = volumes()
    sizes = ", ".join(f"{name} {len(content) / 1e6:.1f} MB" for name, content in data.items())
    print(f"uncompressed: {sizes}")
    print(f"{'deflate':<20}" + "".join(f"{n + ' s':>12}{n + ' MB':>14}" for n in data))
    for name, compress in deflates():
        if compress is None:
            print(f"{name:<20}not installed")
            continue
        line = f"{name:<20}"
        for content in data.values():
            taken = []
            for _ in range(repeats):
                start = time.perf_counter()
                size = len(compress(content))
                taken.append(time.perf_counter() - start)
            line += f"{statistics.median(taken):>12.3f}{size / 1e6:>14.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
