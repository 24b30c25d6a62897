"""Files that are written whole or not at all, whenever the process is killed."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def replace_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Write to a hidden neighbour, then rename, so that a reader never sees half a file.

    Parameters
    ----------
    path : path
        The file to end up with; its folder is made.
    write : callable
        Writes the path it is given, which has the suffixes of ``path``.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    replace_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_torch(content: Any, path: str | Path) -> None:
    """``torch.save`` atomically; the old file stands until the new one is complete."""
    import torch

    replace_atomically(path, lambda partial: torch.save(content, partial))


def file_sha256(path: Path, *, without_last: int = 0) -> str:
    """SHA-256 of a file in hexadecimal, all of it or without its last bytes."""
    digest, left = hashlib.sha256(), max(0, path.stat().st_size - without_last)
    with path.open("rb") as stream:
        while block := stream.read(min(left, 1 << 20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as CSV atomically, the keys first; no rows give an empty file."""
    stream = io.StringIO()
    table = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [])
    if rows:
        table.writeheader()
        table.writerows(rows)
    write_text(path, stream.getvalue())
