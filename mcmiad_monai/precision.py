"""In which numbers products are computed: exact by default, faster on request."""

from __future__ import annotations

import logging
import time
from typing import Literal, get_args

import torch

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def require_precision(name: str) -> None:
    """Refuse a precision that is not known.

    Raises
    ------
    ValueError
        If it is not one of `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is not known; choose one of {list(PRECISIONS)}.")


def slowdown(name: str) -> float:
    """How many times as long a product of matrices takes on this processor as in float32.

    Processors without instructions for bfloat16 do it in software. It is measured, since of some
    kinds PyTorch does not tell which have them.
    """
    return _seconds(getattr(torch, name)) / _seconds(torch.float32)


def warn_where_slow(name: str, device: torch.device) -> None:
    """Log a warning if a processor multiplies matrices faster in float32 than as asked."""
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
    """Least time of a product of square matrices."""
    matrix = torch.ones(size, size, dtype=dtype)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        matrix @ matrix
        taken.append(time.perf_counter() - start)
    return min(taken)
