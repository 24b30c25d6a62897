"""Counting and looking up by whole numbers of a volume, a part at a time.

NumPy turns indices into 64-bit integers first. For a whole volume that is several times the memory
of the volume, and fetching it from the system takes longer than the counting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Kind = TypeVar("Kind", bound=np.generic)

PART = 2**17
"""Numbers in a part: their indices fit into a core's cache."""


def counts(values: NDArray[Any], size: int) -> NDArray[np.int64]:
    """How often each of 0 … size - 1 occurs: (…) → (size,)."""
    total = np.zeros(size, dtype=np.int64)
    for part in _parts(values.ravel(order="K")):
        total += np.bincount(part, minlength=size)
    return total


def look_up(table: NDArray[Kind], indices: NDArray[Any]) -> NDArray[Kind]:
    """``table[indices]``, for indices of any shape that all lie in the table."""
    found = np.empty(indices.size, dtype=table.dtype)
    for out, part in zip(_parts(found), _parts(indices.ravel()), strict=True):
        table.take(part, out=out, mode="clip")  # "raise" would buffer the output
    return found.reshape(indices.shape)


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, flat.size, PART):
        yield flat[start : start + PART]
