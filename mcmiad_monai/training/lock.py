"""One training in a folder at a time, and a folder that is still there when it ends."""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import weakref
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from mcmiad_monai.files.writing import only_writer, write_text

logger = logging.getLogger(__name__)

LOCK = ".training.lock"


class FolderError(RuntimeError):
    """A folder cannot be trained in: another training runs there, or it has vanished."""


class TrainingLock:
    """A file that says which process trains in a folder, from `acquire` or ``with`` to `release`.

    The file has host, process and start of its holder. A holder of this host that has ended, also
    one whose number another process has by now, loses it. The thread that holds it may take it
    again. Of a group of processes the first holds it. It goes at the latest with this object, or
    with the process.

    Parameters
    ----------
    folder : path
        Of the checkpoints; made if it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK
        self._mine: dict[str, Any] | None = None
        self._made: list[Path] = []
        self._finalizer: Any = None

    def __enter__(self) -> TrainingLock:
        self.acquire()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        held = self._is_mine()
        if self._finalizer is not None:
            self._finalizer()
        self._mine = self._finalizer = None
        if not held and error is None:
            raise self._vanished()

    def acquire(self) -> None:
        """Take the folder.

        Raises
        ------
        FolderError
            If another training runs there.
        """
        if idist.get_rank() > 0:
            return
        folder, me = self.path.parent, _this_thread()
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder):
            holder = _read(self.path)
            if holder and holder | {"since": ""} == me | {"since": ""}:  # taken further out
                self._mine = holder
                return
            if holder and not _has_ended(holder):
                raise FolderError(
                    f"{folder} is being trained by process {holder.get('pid')} on "
                    f"{holder.get('host')} since {holder.get('since')}. Wait for its end, stop "
                    f"it, or name another folder. If it no longer runs, delete {self.path}"
                )
            if holder:
                logger.warning(
                    "the training of process %s in %s (since %s) has ended without a word; its "
                    "lock is taken over",
                    *(holder["pid"], folder, holder["since"]),
                )
            write_text(self.path, json.dumps(me))
        self._mine = me
        self._finalizer = weakref.finalize(self, _remove, self.path, me, self._made)

    def require(self) -> None:
        """Be sure that the folder is the one that was taken.

        Raises
        ------
        FolderError
            If it was deleted, moved or replaced, or its disk is gone.
        """
        if not self._is_mine():
            raise self._vanished()

    def release(self) -> None:
        """Let others train in the folder.

        Raises
        ------
        FolderError
            As `require`: what was written is not where it should be.
        """
        self.__exit__(None)

    def _is_mine(self) -> bool:
        return self._mine is None or _read(self.path) == self._mine

    def _vanished(self) -> FolderError:
        return FolderError(
            f"{self.path.parent} is not the folder that this training began in: it was deleted, "
            "moved or replaced, or its disk is gone. Nothing that was trained can be relied on; "
            "train again."
        )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    return dict(content) if isinstance(content, dict) else {"pid": "unknown"}


def _remove(path: Path, mine: dict[str, Any], made: list[Path]) -> None:
    """Remove the lock of this process, and folders that were made for it and are empty."""
    if mine["pid"] != os.getpid():  # a copy of it, in a process that was forked
        return
    with suppress(OSError):
        if _read(path) == mine:
            path.unlink()
        for folder in made:
            folder.rmdir()


def _this_thread() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "start": _start_of(os.getpid()),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "thread": threading.get_ident(),
        "pid_namespace": _pid_namespace(),
    }


def _pid_namespace() -> str:
    """Containers of one host number their processes each for itself."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether a process certainly runs no longer; of other hosts and containers nobody knows."""
    place = (platform.node(), _pid_namespace())
    if (holder.get("host"), holder.get("pid_namespace")) != place:
        return False
    start = _start_of(int(holder["pid"]))
    return start is None or bool(start and holder["start"] and start != holder["start"])


def _start_of(pid: int) -> str | None:
    """Start of a process in ticks since boot; "" where it is not known, None if it has ended."""
    with suppress(OSError):
        # the name in brackets may hold anything; the state comes next, and the start 19 later
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    if os.name == "posix":  # elsewhere the signal 0 is none
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
    return ""
