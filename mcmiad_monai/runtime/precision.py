"""Precision of products: float32 by default, bfloat16 on request, which is faster."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def require_precision(name: str) -> None:
    """Raise a ValueError if a precision is not one of `PRECISIONS`."""
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is not known; choose one of {list(PRECISIONS)}.")


def require_gpu_to_compile(device: str | torch.device, compiled: bool) -> None:
    """Refuse `torch.compile` on a CPU, where other forms are faster.

    Raises
    ------
    ValueError
        If `compiled` is true and the device is not a GPU.
    """
    if compiled and torch.device(device).type != "cuda":
        raise ValueError(
            f"compile is for PyTorch on a GPU, and this network runs on {device}: leave compile "
            "false. On a CPU the extra export is fastest for inference."
        )


class ProductsIn(nn.Module):
    """A network with its products in the given precision, on any device; the output is float32.

    On a GPU PyTorch would by itself compute convolutions in TensorFloat-32, whose products have ten
    bits: float32 means float32 here.

    Parameters
    ----------
    network : nn.Module
    precision : {"float32", "bfloat16"}
    """

    def __init__(self, network: nn.Module, precision: Precision = "float32") -> None:
        super().__init__()
        require_precision(precision)
        self.network, self.precision = network, precision

    def forward(self, image: Tensor) -> Tensor:
        """Run the network."""
        half = self.precision == "bfloat16"
        with (
            without_tensorfloat(),
            # the cache would not help: it is for weights that require gradients
            torch.autocast(image.device.type, torch.bfloat16, enabled=half, cache_enabled=False),
        ):
            output: Tensor = self.network(image)
        return output.float()


@contextmanager
def without_tensorfloat() -> Iterator[None]:
    """Convolutions on a GPU in float32; products of matrices are by PyTorch's default."""
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = kept


def slowdown(name: str) -> float:
    """Time of a product of matrices on this processor, relative to float32.

    Processors without instructions for bfloat16 compute it in software. It is measured, since
    PyTorch does not know of every processor whether it has them.
    """
    return _seconds(getattr(torch, name)) / _seconds(torch.float32)


def warn_where_slow(name: str, device: torch.device) -> None:
    """Log a warning if this processor is faster in float32 than in the chosen precision."""
    if name == "float32" or device.type != "cpu":
        return
    if (times := slowdown(name)) > 1:
        logger.warning(
            "products in %s take %.0f times as long as in float32 on this processor, which lacks "
            "instructions for them; precision=float32 is exact and faster here",
            name,
            times,
        )


def _seconds(dtype: torch.dtype, *, size: int = 256, repeats: int = 3) -> float:
    """Shortest time of a product of square matrices."""
    matrix = torch.ones(size, size, dtype=dtype)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        matrix @ matrix
        taken.append(time.perf_counter() - start)
    return min(taken)
