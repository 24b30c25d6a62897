"""Writing behind the computation: in order, bounded, and never the end of a cohort."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from ignite.engine import Engine

from mcmiad_monai.inference.cohort import CohortIncomplete, CohortReport
from mcmiad_monai.inference.writes import Writes


def test_work_goes_on_behind_the_caller_and_one_study_waits_at_most() -> None:
    writes, gate, done = Writes(), threading.Event(), []
    writes.submit("a", lambda: (gate.wait(10), done.append("a")))  # type: ignore[arg-type, return-value]
    assert done == []  # the caller has not waited
    second = threading.Thread(target=writes.submit, args=("b", lambda: done.append("b")))
    second.start()
    second.join(0.1)
    assert second.is_alive()  # it waits for the first
    gate.set()
    second.join(10)
    writes.finish()
    assert done == ["a", "b"]
    assert writes.failures == {}


def test_report_waits_and_counts_a_study_that_was_not_written_as_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writes, done = Writes(), []

    def full() -> None:
        raise OSError("No space left on device")

    def study(_engine: Engine, case: str) -> list[dict[str, object]]:
        writes.submit(case, full if case == "b" else lambda: done.append(case))
        return [{"scores": {"case": case, "volume_score": 1.0, "slices": [], "warnings": []}}]

    engine, report = Engine(study), CohortReport(tmp_path, writes=writes)
    report.attach(engine)
    engine.run(["a", "b", "c"])
    assert done == ["a", "c"]
    assert "study b failed: OSError: No space left" in caplog.text
    told = json.loads((tmp_path / "scores.json").read_text())
    assert [s["case"] for s in told["scores"]] == ["a", "c"]
    assert told["failed"] == {"b": "OSError: No space left on device"}
    assert told["studies"] == 3
    with pytest.raises(CohortIncomplete):
        report.finish()
