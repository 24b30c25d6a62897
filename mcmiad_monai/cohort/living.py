"""Whether a worker that has begun a study still runs."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path

#: Name of a worker: host, number of its process, and which of the process's workers it is.
WORKER = re.compile(r"(.+)-([0-9]+)-([^-]+)")
#: Seconds by which the start of a process may seem later than what it wrote: clocks are set.
SLACK = 2.0


def lives(worker: str, since: float) -> bool | None:
    """Whether the worker that began a study still runs; None of another host: nobody knows.

    Parameters
    ----------
    worker : str
        Its name, ``host-process-worker``.
    since : float
        When it began the study, in Unix time: a process that started later has got the number of
        one that has ended.
    """
    found = WORKER.fullmatch(worker)
    if found is None or found[1] != platform.node() or os.name != "posix":
        return None
    process = int(found[2])
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return _started(process) <= since + SLACK


def _started(process: int) -> float:
    """When a process started, in Unix time; infinity if it has ended, 0 where it is not known."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        boot = next(float(line.split()[1]) for line in lines if line.startswith("btime"))
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        # the name in brackets may hold anything; the state comes next, and the start 19 later
        fields = stat.rpartition(")")[2].split()
        ticks = float(fields[19])
        return float("inf") if fields[0] in "ZX" else boot + ticks / os.sysconf("SC_CLK_TCK")
    return 0.0
