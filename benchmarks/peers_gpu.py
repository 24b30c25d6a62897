"""Training time, slices a second and memory on a GPU of the method and its peers, in one process.

    python benchmarks/peers_gpu.py [--images DATA] [--encoder NAME --weights FILE]

The rows and what they are made of are those of `peers_speed.py`, all with the same encoder weights
and the same images; anomalib's are left out where it is not installed. All are PyTorch in float32,
but for ours in bfloat16. In float32 anomalib's models and the nearest neighbours compute
convolutions in TensorFloat-32, as PyTorch does by itself; ours do not. They answer in turn. Memory
is the most that tensors took on the GPU while one batch was answered, the model among it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from engines import place, wait
from monai.utils import set_determinism
from peers_speed import CONTENDERS, Contender, parser_of, prepare
from torch import Tensor

from mcmiad_monai.networks.package import load_package
from mcmiad_monai.runtime.open import open_network

COLUMNS = ("train s", "slices/s", "least", "most", "infer MB")


def main() -> None:
    """Print one table."""
    counts = {"train-images": 200, "steps": 40, "infer-images": 256, "batch": 64, "repeats": 5}
    parser = parser_of(__doc__, {**counts, "threads": torch.get_num_threads()})
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        compare(Path(folder), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Train and open all, let them answer in turn, and print the table."""
    spec = SimpleNamespace(**json.loads((folder / "spec.json").read_text(encoding="utf-8")))
    spec.folder = folder
    training, asked = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("make", "open")
    )
    batches = asked.to(options.device).split(options.batch)
    opened: dict[str, Callable[[Tensor], Any]] = {}
    cells: dict[str, tuple[float, float]] = {}
    with torch.inference_mode():
        for one in CONTENDERS:
            if one.needs not in ("torch", "anomalib") or not importlib.util.find_spec(one.needs):
                continue
            with torch.inference_mode(mode=False):
                seconds, note = one.make(spec, one, training)
            print(f"{one.title}: {note}")
            for title, opening in ways(one, options.device).items():
                before = torch.cuda.memory_allocated() if options.device != "cpu" else 0
                run = opening(spec, one)
                most = peak(run, batches[0], options.device) - before
                opened[title], cells[title] = run, (seconds, most / 1e6)
        set_determinism(seed=None)  # training asked for slow convolutions, inference does not
        rates: dict[str, list[float]] = {title: [] for title in opened}
        for _ in range(options.repeats):
            for title, run in opened.items():
                start = time.perf_counter()
                for batch in batches:
                    run(batch)
                wait(options.device)
                rates[title].append(len(asked) / (time.perf_counter() - start))
    print(place(options.device))
    print(f"{'method':<36}" + "".join(f"{name:>10}" for name in COLUMNS))
    for title, found in rates.items():
        seconds, memory = cells[title]
        speeds = (statistics.median(found), min(found), max(found))
        print(f"{title:<36}" + "".join(f"{v:>10.1f}" for v in (seconds, *speeds, memory)))


def ways(one: Contender, device: str) -> dict[str, Callable[[Any, Contender], Any]]:
    """How a trained contender is opened, by title."""
    found = {one.title: one.open}
    if one.title.startswith("ours"):
        found[f"{one.title} bfloat16"] = open_half
        if device != "cpu":
            found[f"{one.title} bfloat16, compiled"] = partial(open_half, compiled=True)
    return found


def open_half(spec: Any, one: Contender, *, compiled: bool = False) -> Callable[[Tensor], Any]:
    """Our network with its products in bfloat16."""
    detector = load_package(spec.folder / one.file)
    return open_network(detector, device=spec.device, precision="bfloat16", compiled=compiled)


def peak(run: Callable[[Tensor], Any], batch: Tensor, device: str) -> int:
    """Most bytes that tensors take while a batch is answered, after one to warm up."""
    run(batch)
    if device == "cpu":
        return 0
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    run(batch)
    wait(device)
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
