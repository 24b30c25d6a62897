"""The driver gives every study to a worker, whatever becomes of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cohort_records import ends, events

from mcmiad_monai.cohort.driver import WorkersError, run
from mcmiad_monai.cohort.ledger import Ledger, Row, Study


class FakeWorkers:
    """Workers of this process: `fate` of a study is its row, or None for the worker's death."""

    def __init__(self, out: Path, count: int, fate: Callable[[Study], Mapping[str, Any] | None]):
        self.count, self.fate = count, fate
        self.ledgers = [Ledger(out, f"fake-{k}-{k}") for k in range(count)]
        self.given: list[int] = []
        self.alive: set[int] = set()
        self.starts = self.stops = 0
        self.waiting: deque[tuple[int, Study]] = deque()

    def start(self, k: int) -> None:
        assert k not in self.alive
        self.alive.add(k)
        self.starts += 1

    def give(self, k: int, study: Study) -> None:
        assert k in self.alive
        assert k not in {busy for busy, _ in self.waiting}
        self.given.append(study["number"])
        self.waiting.append((k, study))

    def wait(self) -> list[tuple[int, Row | None]]:
        k, study = self.waiting.popleft()
        self.ledgers[k].begin(study)
        row = self.fate(study)
        if row is None:
            self.alive.remove(k)
            return [(k, None)]
        return [(k, self.ledgers[k].end(study, **row))]

    def stop(self) -> None:
        self.stops += 1


def planned(*marks: str) -> list[tuple[Study, int]]:
    return [
        ({"number": k, "case": f"{mark}{k}", **({"refused": "why"} if mark == "r" else {})}, 0)
        for k, mark in enumerate(marks)
    ]


def fate(study: Study) -> dict[str, Any] | None:
    return None if study["case"].startswith("k") else {"status": "done"}


def screened(out: Path, workers: FakeWorkers, studies: list[tuple[Study, int]]) -> list[Row]:
    told: list[Row] = []
    run(studies, workers, Ledger(out, "driver"), ended=told.append)
    assert workers.stops == 1
    assert {row["case"]: row["status"] for row in told} == ends(out)
    return told


def test_each_study_ends_once_and_the_poisoned_one_is_left_alone(tmp_path: Path) -> None:
    workers = FakeWorkers(tmp_path, 2, fate)
    told = screened(tmp_path, workers, planned("a", "k", "a", "r", "a"))
    assert ends(tmp_path) == {
        "a0": "done",
        "k1": "quarantined",
        "a2": "done",
        "r3": "refused",
        "a4": "done",
    }
    assert workers.given == [0, 1, 2, 4, 1, 1]  # all others first; no worker is bothered with 3
    assert workers.starts == 4
    (row,) = [row for row in told if row["status"] == "quarantined"]
    assert row["attempts"] == 3
    assert "3 times" in row["error"]


def test_deaths_of_earlier_runs_count(tmp_path: Path) -> None:
    workers = FakeWorkers(tmp_path, 1, fate)
    studies = [
        (study, deaths) for (study, _), deaths in zip(planned("k", "k"), (3, 2), strict=True)
    ]
    screened(tmp_path, workers, studies)
    assert workers.given == [1]
    assert set(ends(tmp_path).values()) == {"quarantined"}


def test_no_more_workers_are_started_than_there_are_studies(tmp_path: Path) -> None:
    workers = FakeWorkers(tmp_path, 8, fate)
    screened(tmp_path, workers, planned("a", "a"))
    assert workers.starts == 2
    idle = FakeWorkers(tmp_path / "none", 2, fate)
    screened(tmp_path / "none", idle, planned("r"))
    assert idle.starts == 0


def test_workers_that_cannot_start_end_the_run(tmp_path: Path) -> None:
    class Broken(FakeWorkers):
        def wait(self) -> list[tuple[int, Row | None]]:
            raise WorkersError("no model")

    workers = Broken(tmp_path, 2, fate)
    with pytest.raises(WorkersError, match="no model"):
        run(planned("a", "a"), workers, Ledger(tmp_path, "driver"))
    assert workers.stops == 1
    assert not events(tmp_path)
