"""Reading the records of a cohort as plain lines, without the package."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def events(out: Path) -> list[dict[str, Any]]:
    """All whole lines of the records."""
    files = sorted((out / "records").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_bytes().split(b"\n")[:-1]]
    return [json.loads(line) for line in lines if line.strip()]


def ends(out: Path) -> dict[str, str]:
    """Status of each study; each has ended once."""
    found = [(line["case"], line["status"]) for line in events(out) if line["event"] == "end"]
    assert len(found) == len(dict(found)), found
    return dict(found)


def begun(out: Path, case: str) -> int | None:
    """Number of the process that has a study, once one has."""
    workers = [e["worker"] for e in events(out) if e["event"] == "begin" and e["case"] == case]
    return int(workers[-1].split("-")[-2]) if workers else None


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until something is true."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
    return found
