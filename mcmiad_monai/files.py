"""Files that are written whole or not at all, whenever the process is killed."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mcmiad_monai.formats import DATA_BESIDE

#: First characters by which a spreadsheet takes a cell for a formula or splits it.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


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
    """Write rows of the same keys as CSV atomically, the keys first; no rows give an empty file.

    Texts that a spreadsheet would run are neutralised; see `csv_cell`.
    """
    stream = io.StringIO()
    table = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [])
    if rows:
        table.writeheader()
        table.writerows({key: csv_cell(cell) for key, cell in row.items()} for row in rows)
    write_text(path, stream.getvalue())


def csv_cell(value: Any) -> Any:
    """A cell of which a spreadsheet makes no formula: ``=1+1`` becomes ``'=1+1``.

    Numbers stay as they are, also where they are text.
    """
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def input_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of the visible files of a folder whatever their names.

    Of a header whose data lie in a file beside it, of both.
    """
    source = Path(path)
    if not source.is_dir():
        beside = [source.with_suffix(data) for data in DATA_BESIDE.get(source.suffix.lower(), ())]
        parts = [_sha256(file) for file in (source, *beside) if file.is_file() or file == source]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    files = (file for file in source.iterdir() if file.is_file() and file.name[0] != ".")
    digests = sorted(_sha256(file) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Let one thread of one process at a time write into a folder, where the system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
