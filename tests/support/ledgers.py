"""Ledgers of cohorts as workers write them, without the workers."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

#: A process of this host that has ended, whatever runs: numbers of processes are smaller.
DEAD = f"{platform.node()}-{2**30}-0"
#: This process.
ALIVE = f"{platform.node()}-{os.getpid()}-0"
ELSEWHERE = "another-host-12-0"


def write_plan(out: Path, studies: int | list[dict[str, Any]]) -> None:
    """A plan of studies ``s0``, ``s1``, …, or of those given."""
    if isinstance(studies, int):
        studies = [{"case": f"s{n}", "image": f"/in/s{n}.nii.gz"} for n in range(studies)]
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"number": n} | study) + "\n" for n, study in enumerate(studies))
    (out / "plan.jsonl").write_text("".join(lines), encoding="utf-8")


def record(out: Path, worker: str, event: str, number: int, **row: Any) -> None:
    """A line of a worker's records; its time is later than those before it."""
    records = out / "records"
    records.mkdir(parents=True, exist_ok=True)
    row = {"time": _now(out)} | row
    line = {"event": event, "number": number, "case": f"s{number}", "worker": worker} | row
    with (records / f"{worker}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def done(out: Path, worker: str, number: int, **row: Any) -> None:
    """Begin and end of a study."""
    record(out, worker, "begin", number)
    record(out, worker, "end", number, **({"status": "done"} | row))


def torn(out: Path, worker: str, text: str | bytes) -> None:
    """What a killed worker has left at the end of its records."""
    with (out / "records" / f"{worker}.jsonl").open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


_ticks: dict[Path, float] = {}


def _now(out: Path) -> float:
    import time

    _ticks[out] = _ticks.get(out, time.time()) + 0.001
    return _ticks[out]
