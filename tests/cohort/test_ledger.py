"""Lines of a ledger are whole, and torn ones harm no other."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from cohort_records import events

from mcmiad_monai.cohort.ledger import Ledger, worker_name
from mcmiad_monai.cohort.state import counts, todo
from mcmiad_monai.files.room import DiskFullError

STUDY = {"number": 3, "case": "a"}


def planned(out: Path, count: int) -> None:
    lines = [json.dumps({"number": k, "case": f"s{k}", "image": f"/d/{k}"}) for k in range(count)]
    (out / "plan.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_lines_say_who_did_what_and_when(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "host-1-0")
    ledger.begin(STUDY)
    told = ledger.end(STUDY, status="done", score=1.5)
    ledger.close()
    begin, end = events(tmp_path)
    assert end == told
    assert (begin["event"], begin["number"], begin["case"]) == ("begin", 3, "a")
    assert (end["event"], end["status"], end["score"]) == ("end", "done", 1.5)
    assert end["time"] >= begin["time"] > 1.7e9
    assert {begin["worker"], end["worker"]} == {"host-1-0"}


def test_line_that_was_torn_takes_no_other_with_it(tmp_path: Path) -> None:
    planned(tmp_path, 3)
    ledger = Ledger(tmp_path, "host-1-0")
    ledger.end({"number": 0, "case": "s0"}, status="done")
    ledger.close()
    with ledger.path.open("ab") as file:
        file.write(b'{"event": "end", "number": 1, "ca')
    ledger.end({"number": 2, "case": "s2"}, status="done")  # opens the file again
    assert counts(tmp_path)["done"] == 2
    assert [study["number"] for study, _ in todo(tmp_path)] == [1]


def test_full_disk_is_told_and_what_follows_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(tmp_path, 3)
    ledger = Ledger(tmp_path, "host-1-0")
    ledger.end({"number": 0, "case": "s0"}, status="done")
    real = os.write
    answers = iter([9, None])

    def write(handle: int, content: bytes) -> int:
        count = next(answers)
        if count is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, content[:count])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DiskFullError, match="no room"):
        ledger.end({"number": 1, "case": "s1"}, status="done")
    monkeypatch.undo()
    ledger.end({"number": 2, "case": "s2"}, status="done")
    assert counts(tmp_path)["done"] == 2


def test_numbers_that_json_has_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Ledger(tmp_path, "host-1-0").end(STUDY, status="done", score=float("nan"))


def test_stopped_study_has_no_death(tmp_path: Path) -> None:
    planned(tmp_path, 2)
    ledger = Ledger(tmp_path, "elsewhere-1-0")
    for study in ({"number": 0, "case": "s0"}, {"number": 1, "case": "s1"}):
        ledger.begin(study)
        if study["number"] == 0:
            ledger.stop(study)
    assert next((study["number"], deaths) for study, deaths in todo(tmp_path)) == (0, 0)


def test_workers_of_a_process_have_names_of_their_own() -> None:
    assert worker_name(0) != worker_name(1)
    assert f"-{os.getpid()}-" in worker_name(0)
