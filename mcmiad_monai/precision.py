"""In which numbers products are computed: exact by default, faster on request."""

from __future__ import annotations

from typing import Literal, get_args

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
