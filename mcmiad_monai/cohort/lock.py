"""One driver for a shard at a time, on all machines that see the folder."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from mcmiad_monai.errors import escaped
from mcmiad_monai.files.writing import only_writer

logger = logging.getLogger(__name__)

#: Folder of the locks, below that of the cohort.
LOCKS = "locks"


class BusyError(RuntimeError):
    """Another driver does the same studies."""


@contextmanager
def only_driver(out: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Be the only driver of a shard; other shards of the same number of shards may be done.

    The system's lock of an open file is used: it goes with the process, however that ends. Between
    machines it holds where their shared disk has such locks, as NFS has; where it has none, a
    warning says so.

    Parameters
    ----------
    out : path
        Folder of the cohort.
    shard : (int, int)
        Which of how many.

    Raises
    ------
    BusyError
        If another driver does this shard, or shards of another number.
    """
    folder = out / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    mine = folder / f"{shard[0]}-of-{shard[1]}"
    with mine.open("a+", encoding="utf-8") as file:
        with only_writer(folder):  # of two that begin together, one looks after the other
            for path in sorted(folder.iterdir()):
                if not path.name.endswith(f"-of-{shard[1]}"):
                    with path.open(encoding="utf-8") as other:
                        _take(other, path)
            _take(file, mine)
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()} since {since}")
            file.flush()
        yield


def _take(file: TextIO, path: Path) -> None:
    """Lock an open file, to its end."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        shard = path.name.replace("-of-", "/")
        raise BusyError(
            f"another mcmiad screen works on shard {shard} of {path.parent.parent}: "
            f"{escaped(path.read_text(encoding='utf-8')[:200])}. Wait for its end, or stop it; "
            "shards of the same number of shards may run side by side."
        ) from None
    except OSError as error:
        told = (path.parent, error.strerror)
        logger.warning("the disk of %s has no locks (%s): start no second mcmiad screen", *told)
