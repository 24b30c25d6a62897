"""What happened to each study of a cohort: lines that are added, each whole or not at all.

A worker writes into a file of its own, so that no two processes, and no two machines of a shared
disk, ever write into the same one. A line is one ``write``; a worker that is killed leaves at most
a torn line, which readers pass over. Lines that a power failure takes cost time, not results: the
files of a study are on the disk before its ``end``, and a study without one is done again.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mcmiad_monai.data.cases.names import plain_name
from mcmiad_monai.files.room import room_for

#: Files and folders of a cohort, below its folder.
RUN, PLAN, RECORDS, RESULTS = "run.json", "plan.jsonl", "records", "results.parquet"

#: A line of the plan: ``number``, ``case``, ``image``, and what is known besides.
Study = Mapping[str, Any]
#: What an ``end`` line tells of a study, see `Ledger.end`.
Row = dict[str, Any]
Status = Literal["done", "refused", "failed", "quarantined"]


class Ledger:
    """The lines of one worker.

    ======================  =====================================================================
    ``begin``               a worker takes the study
    ``end``                 it has its result, or the reason why there is none; the first one holds
    ``stopped``             the worker was asked to stop, and dropped it: takes a ``begin`` back
    ``again``               the study is done anew: its lines with a smaller ``round`` do not count
    ======================  =====================================================================

    A study that was begun more often than it was ended or stopped has killed workers, or was
    computed when its machine failed.

    Parameters
    ----------
    folder : path
        Of the cohort.
    worker : str
        Name of the only process that writes these lines; see `worker_name`.

    Raises
    ------
    DiskFullError
        From any method, if there is no room for a line.
    """

    def __init__(self, folder: str | Path, worker: str) -> None:
        self.folder, self.worker = Path(folder), worker
        self.path = self.folder / RECORDS / f"{worker}.jsonl"
        self._file: int | None = None
        self._torn = False

    def begin(self, study: Study) -> None:
        """Say that the worker takes a study."""
        self._add("begin", study, {})

    def end(self, study: Study, *, status: Status, **row: Any) -> Row:
        """Say how a study ended.

        Parameters
        ----------
        study : mapping
        status : str
        **row
            Columns of the table of results; those that are left out are empty.

        Returns
        -------
        dict
            The line: ``event``, ``number``, ``case``, ``worker``, ``time``, ``status`` and `row`.
        """
        return self._add("end", study, {"status": status, **row})

    def stop(self, study: Study) -> None:
        """Say that the study was dropped, through no fault of its own."""
        self._add("stopped", study, {})

    def again(self, study: Study) -> None:
        """Begin another round of a study that has ended; ``study["round"]`` is its number."""
        self._add("again", study, {})

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _add(self, event: str, study: Study, more: Row) -> Row:
        line = {"event": event, "number": study["number"], "case": study["case"]}
        if "round" in study:
            line["round"] = study["round"]
        line |= {"worker": self.worker, "time": time.time(), **more}
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        with room_for(self.path):
            self._write(content)
        return line

    def _write(self, content: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._file = os.open(self.path, flags, 0o666)
            self._torn = os.fstat(self._file).st_size > 0  # perhaps; an empty line harms nobody
        written = os.write(self._file, b"\n" + content if self._torn else content)
        self._torn = written < len(content)
        if self._torn:
            self._write(content)  # raises what was in the way


def worker_name(k: int | str) -> str:
    """Name of worker `k` of this process, unlike that of any other on any machine.

    Parameters
    ----------
    k : int or str
        Number of the worker, or what it does.
    """
    return plain_name(f"{platform.node() or 'host'}-{os.getpid()}-{k}")
