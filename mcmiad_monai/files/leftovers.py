"""What is being written has a name of its own; what a killed process left is removed."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

#: Name of what is being written: the place (see `_place`) and the number of the process.
PARTIAL = re.compile(r"\.mcmiad-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.")
#: Characters of a file's name that its partial one keeps: its suffixes are among them.
TAIL = 40
#: Seconds after which what another machine was writing is a left-over.
ABANDONED = 86400.0


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
