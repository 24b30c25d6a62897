"""Whether PyTorch runs a layer, compiles it, or writes it down as a graph for others to run."""

from __future__ import annotations

import torch


def is_compiled() -> bool:
    """Whether `torch.compile` is at work."""
    return bool(torch.compiler.is_dynamo_compiling())


def is_written() -> bool:
    """Whether a graph is exported or traced."""
    if is_compiled():  # some versions of PyTorch say then that they export
        return False
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return torch.compiler.is_exporting() or tracing
