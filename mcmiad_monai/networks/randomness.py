"""Whose random numbers a layer draws: the process's, or those of a thread that has its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_own = threading.local()


def generator() -> torch.Generator | None:
    """What the calling thread draws from: its own generator, or None, which is PyTorch's global."""
    if torch.compiler.is_compiling():
        return None
    found: torch.Generator | None = getattr(_own, "generator", None)
    return found


@contextmanager
def own_numbers(seed: int) -> Iterator[None]:
    """Give the calling thread numbers of its own on the CPU, whatever other threads draw."""
    _own.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        del _own.generator
