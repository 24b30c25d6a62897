"""What a method costs: fitting time, memory, slices a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
#: Slices in one timed call, and calls of which the fastest counts.
SLICES, CALLS = 16, 3


def fitted(fit: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What `fit` gives; its seconds, and by how much memory grew meanwhile at the most."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    before, start = megabytes("VmRSS"), time.perf_counter()
    found = fit()
    seconds = time.perf_counter() - start
    return found, {"fit_seconds": seconds, "fit_megabytes": megabytes("VmHWM") - before}


@torch.inference_mode()
def seconds_a_slice(call: Callable[[], Any], slices: int = SLICES) -> dict[str, float]:
    """Seconds of one of the slices that `call` handles, on one thread and on all."""
    before, found = torch.get_num_threads(), {}
    for name, threads in {"one": 1, "all": os.cpu_count() or 1}.items():
        torch.set_num_threads(threads)
        each = []
        for _ in range(CALLS):
            start = time.perf_counter()
            call()
            each.append(time.perf_counter() - start)
        found[name] = min(each) / slices
    torch.set_num_threads(before)
    return found


def slices_a_second(*parts: dict[str, float]) -> dict[str, float]:
    """Of a chain of parts, encoder included, by the number of threads."""
    return {f"slices_s_{name}": 1 / sum(part[name] for part in parts) for name in ("one", "all")}


def megabytes(field: str) -> float:
    """A figure of this process's memory, as Linux tells it: VmRSS now, VmHWM the most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status does not tell {field}; this benchmark needs Linux.")
