"""Files that are written whole or not at all, whenever the process is killed."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mcmiad_monai.files.leftovers import partial_path
from mcmiad_monai.files.room import room_for

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

    Raises
    ------
    DiskFullError
        If there is no room for the file; an old one stays as it was.
    """
    replace_together({Path(path): write})


def replace_together(writes: Mapping[Path, Callable[[Path], Any] | None]) -> None:
    """Write several files as `replace_atomically` does, and rename them once all are complete.

    The last one stands for all: an old one is gone before the first of the others is replaced, so
    that it never stands beside files that are not its own. A file with None instead of what writes
    it is removed with it.
    """
    wanted = {target: write for target, write in writes.items() if write is not None}
    partials = {target: partial_path(target) for target in wanted}
    try:
        for target, write in wanted.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with room_for(target):
                write(partials[target])
                with partials[target].open("rb") as file:
                    os.fsync(file.fileno())
        if len(writes) > 1:
            target.unlink(missing_ok=True)
        for unwanted in set(writes) - set(wanted):
            unwanted.unlink(missing_ok=True)
        for target, partial in partials.items():
            partial.replace(target)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    replace_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_torch(content: Any, path: str | Path) -> None:
    """``torch.save`` atomically; the old file stands until the new one is complete."""
    import torch

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # of a path, PyTorch does not say why it cannot write
            torch.save(content, file)

    replace_atomically(path, write)


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
