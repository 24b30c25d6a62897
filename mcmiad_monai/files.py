"""Files that are written whole or not at all, whenever the process is killed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import logging
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from mcmiad_monai.formats import DATA_BESIDE

logger = logging.getLogger(__name__)

#: First characters by which a spreadsheet takes a cell for a formula or splits it.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
#: Most bytes of a YAML file, and most values in it, those behind aliases each time.
YAML_BYTES = 1_000_000
YAML_VALUES = 100_000
#: Name of what is being written: the place (see `_place`) and the number of the process.
PARTIAL = re.compile(r"\.mcmiad-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.")
#: Characters of a file's name that its partial one keeps: its suffixes are among them.
TAIL = 40
#: Seconds after which what another machine was writing is a left-over.
ABANDONED = 86400.0
#: What the system says where there is no room: disk, quota, largest file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Free bytes of a disk that is full, where a library does not say why it could not write.
FULL_BELOW = 1 << 20


class OutputError(ValueError):
    """Nothing can be written into a folder, or not as much as is needed."""


class DiskFullError(OSError):
    """A file could not be written because there is no room for it."""


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


def replace_together(writes: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Write several files as `replace_atomically` does, and rename them once all are complete.

    The last one stands for all: an old one is gone before the first of the others is replaced, so
    that it never stands beside files that are not its own.
    """
    partials = {target: partial_path(target) for target in writes}
    try:
        for target, write in writes.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with room_for(target):
                write(partials[target])
                with partials[target].open("rb") as file:
                    os.fsync(file.fileno())
        if len(partials) > 1:
            target.unlink(missing_ok=True)
        for target, partial in partials.items():
            partial.replace(target)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def partial_path(target: Path) -> Path:
    """A hidden neighbour to write to; `remove_leftovers` knows whether its writer still lives."""
    name = f".mcmiad-{_place()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{target.name[-TAIL:]}"
    return target.with_name(name)


@cache
def _place() -> str:
    """Digest of where the number of a process means that process: machine, boot and namespace."""
    parts = [platform.node()]
    with suppress(OSError):  # Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


@contextmanager
def room_for(target: Path) -> Iterator[None]:
    """Raise `DiskFullError` where a file in `target` is not written because there is no room."""
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(target.parent).free
        if not _says_full(error) and (isinstance(error, OSError) or free >= FULL_BELOW):
            raise
        raise DiskFullError(
            f"there is no room for {target} (its disk has {_size(free)} free; a quota or a limit "
            "of file sizes may be lower). What was written before is kept. Make room, or name "
            "another output folder."
        ) from error


def _says_full(error: BaseException | None) -> bool:
    """Whether an error, or what raised it, is the system's word for no room."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return error is not None and _says_full(error.__cause__ or error.__context__)


def _size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def prepare_output(folder: str | Path, *, room: int = 0, levels: int = 1) -> None:
    """Try a folder before anything is computed, and remove what killed runs left in it.

    Parameters
    ----------
    folder : path
        Need not exist; what is made to try it is removed again.
    room : int
        Bytes that will be written, roughly.
    levels : int
        Of folders below it in which left-overs of killed runs are looked for.

    Raises
    ------
    OutputError
        If it cannot be made, is not writable, or has too little room.
    """
    folder, made = Path(folder), []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, levels=levels)
        trial = partial_path(folder / "trial")
        try:
            trial.write_bytes(b"trial")
        finally:
            trial.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        what = "has no room left" if error.errno in FULL else f"cannot be used ({error.strerror})"
        raise OutputError(
            f"the output folder {folder} {what}; a folder is needed in which files can be written. "
            "Name another one, or change its rights or its disk."
        ) from error
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()
    if free < room:
        raise OutputError(
            f"the output folder {folder} has {_size(free)} free, and about {_size(room)} will be "
            "written. Make room, or name a folder on another disk."
        )


def remove_leftovers(folder: str | Path, *, levels: int = 1) -> None:
    """Remove what killed processes were writing into a folder, and so many levels below it.

    What a living process of this machine writes stays, and what another machine has written to in
    the last day.
    """
    removed = 0
    for path, place, process in list(_partials(Path(folder), levels)):
        if place == _place() and os.name == "posix":
            abandoned = not _lives(process)
        else:
            abandoned = time.time() - _last_written(path) > ABANDONED
        if abandoned:
            removed += 1
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if removed:
        logger.info("%s: removed %d unfinished files of killed runs", folder, removed)


def _partials(folder: Path, levels: int) -> Iterator[tuple[Path, str, int]]:
    """What is being written, or was: path, place, process."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if found := PARTIAL.match(entry.name):
                yield Path(entry.path), found[1], int(found[2])
            elif levels and entry.is_dir(follow_symlinks=False):
                yield from _partials(Path(entry.path), levels - 1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _last_written(path: Path) -> float:
    """Newest time of a file, or of a folder and its files; now, where another has removed it."""
    times = [time.time()]
    with suppress(OSError):
        times = [one.stat().st_mtime for one in (path, *path.rglob("*"))]
    return max(times)


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


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """A mapping in a YAML file, of plain values: no tag makes an object, no code is run.

    Raises
    ------
    ValueError
        If it is no such file, or its aliases stand for more than `YAML_VALUES` values.
    """
    import yaml

    try:
        if (size := Path(path).stat().st_size) > YAML_BYTES:
            raise ValueError(f"it has {size} bytes; at most {YAML_BYTES} are read")
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if _values(node, {}) > YAML_VALUES:
            raise ValueError(f"its aliases stand for more than {YAML_VALUES} values")
        content = loader.construct_document(node) if node else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} cannot be read as YAML of plain values: {reason}. Tags that make objects, as "
            "!!python/object, are not read. Bring the file of the bundle again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; names with values are needed.")
    return content


def _values(node: Any, known: dict[int, int]) -> int:
    """Values of a YAML node, those behind aliases each time."""
    if not isinstance(getattr(node, "value", None), list):
        return 1
    if id(node) not in known:
        known[id(node)] = YAML_VALUES + 1  # of a node in itself
        below = [part for pair in node.value for part in (pair if type(pair) is tuple else (pair,))]
        known[id(node)] = min(YAML_VALUES + 1, 1 + sum(_values(part, known) for part in below))
    return known[id(node)]


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
        parts = [file_sha256(f) for f in (source, *beside) if f.is_file() or f == source]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    files = (file for file in source.iterdir() if file.is_file() and file.name[0] != ".")
    digests = sorted(file_sha256(file) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


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
