"""What a ledger says, also one that killed workers have left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ledgers import ALIVE, DEAD, ELSEWHERE, done, record, torn, write_plan

from mcmiad_monai.cohort.living import lives
from mcmiad_monai.cohort.sql import CohortError
from mcmiad_monai.cohort.state import counts, todo


def numbers(out: Path, shard: tuple[int, int] = (0, 1)) -> list[tuple[int, int]]:
    return [(study["number"], deaths) for study, deaths in todo(out, shard)]


def some(out: Path) -> dict[str, int]:
    return {status: n for status, n in counts(out).items() if n}


def test_without_records_all_is_to_be_done_in_the_order_of_the_plan(tmp_path: Path) -> None:
    write_plan(tmp_path, 3)
    assert numbers(tmp_path) == [(0, 0), (1, 0), (2, 0)]
    assert some(tmp_path) == {"pending": 3}
    (tmp_path / "records").mkdir()
    (tmp_path / "records/host-1-0.jsonl").touch()
    assert numbers(tmp_path) == [(0, 0), (1, 0), (2, 0)]
    assert some(tmp_path) == {"pending": 3}


def test_a_shard_is_every_nth_study_from_the_ith(tmp_path: Path) -> None:
    write_plan(tmp_path, 8)
    done(tmp_path, DEAD, 4)
    assert numbers(tmp_path, (1, 3)) == [(1, 0), (7, 0)]
    assert numbers(tmp_path, (0, 3)) == [(0, 0), (3, 0), (6, 0)]


def test_a_study_is_as_the_plan_has_it(tmp_path: Path) -> None:
    study = {"case": "a", "image": "/in/\udcff.nii", "modality": "flair", "refused": "two images"}
    write_plan(tmp_path, [study])
    assert list(todo(tmp_path)) == [({"number": 0, **study}, 0)]


def test_who_ends_a_study_first_says_what_it_is(tmp_path: Path) -> None:
    write_plan(tmp_path, 2)
    record(tmp_path, DEAD, "begin", 0)
    record(tmp_path, ELSEWHERE, "begin", 0)
    record(tmp_path, ELSEWHERE, "end", 0, status="refused")
    record(tmp_path, DEAD, "end", 0, status="done")
    assert numbers(tmp_path) == [(1, 0)]
    assert some(tmp_path) == {"refused": 1, "pending": 1}


def test_workers_that_died_of_a_study_are_counted_and_it_runs_last(tmp_path: Path) -> None:
    write_plan(tmp_path, 4)
    for worker in (DEAD, DEAD, f"{DEAD}0"):
        record(tmp_path, worker, "begin", 0)
    record(tmp_path, f"{DEAD}1", "begin", 1)
    done(tmp_path, DEAD, 3)
    assert numbers(tmp_path) == [(2, 0), (1, 1), (0, 3)]
    assert some(tmp_path) == {"done": 1, "pending": 3}
    record(tmp_path, DEAD, "end", 0, status="quarantined")
    assert numbers(tmp_path) == [(2, 0), (1, 1)]
    assert some(tmp_path) == {"done": 1, "quarantined": 1, "pending": 2}


def test_a_worker_that_was_asked_to_stop_has_not_died(tmp_path: Path) -> None:
    write_plan(tmp_path, 1)
    record(tmp_path, DEAD, "begin", 0)
    record(tmp_path, DEAD, "stopped", 0)
    assert numbers(tmp_path) == [(0, 0)]
    record(tmp_path, DEAD, "begin", 0)
    assert numbers(tmp_path) == [(0, 1)]


def test_what_a_living_worker_does_is_left_to_it(tmp_path: Path) -> None:
    write_plan(tmp_path, 3)
    record(tmp_path, ALIVE, "begin", 0)
    assert numbers(tmp_path) == [(1, 0), (2, 0)]
    assert some(tmp_path) == {"in progress": 1, "pending": 2}
    # one worker does one study at a time: a name of before stands for a worker that died
    record(tmp_path, ALIVE, "begin", 1)
    assert numbers(tmp_path) == [(2, 0), (0, 1)]
    assert some(tmp_path) == {"in progress": 1, "pending": 2}


def test_of_another_host_a_begin_may_be_in_progress_and_is_done_again(tmp_path: Path) -> None:
    write_plan(tmp_path, 2)
    record(tmp_path, ELSEWHERE, "begin", 0)
    assert some(tmp_path) == {"in progress": 1, "pending": 1}
    assert numbers(tmp_path) == [(1, 0), (0, 1)]


def test_a_process_that_started_later_is_not_the_worker() -> None:
    assert lives(ALIVE, time.time())
    assert lives(ALIVE, 1e9) is False
    assert lives(DEAD, time.time()) is False
    assert lives(ELSEWHERE, time.time()) is None
    assert lives("a worker of another kind", time.time()) is None


def test_a_process_whose_parent_has_not_asked_for_its_end_is_dead() -> None:
    with subprocess.Popen(["true"]) as process:
        worker = ALIVE.replace(str(os.getpid()), str(process.pid))
        deadline = time.monotonic() + 10
        while lives(worker, time.time() + 60) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lives(worker, time.time() + 60) is False


END = '{"event": "end", "number": 1, "worker": "w", "time": 1.0, "status": "done"}'


@pytest.mark.parametrize("cut", [1, 10, 40, len(END) - 1])
def test_a_line_that_was_cut_off_says_nothing(tmp_path: Path, cut: int) -> None:
    write_plan(tmp_path, 3)
    done(tmp_path, DEAD, 0)
    torn(tmp_path, DEAD, END[:cut])
    assert numbers(tmp_path) == [(1, 0), (2, 0)]
    torn(tmp_path, DEAD, "\n")  # the next worker of the name ends it
    done(tmp_path, DEAD, 2)
    assert numbers(tmp_path) == [(1, 0)]
    assert some(tmp_path) == {"done": 2, "pending": 1}


def test_a_whole_line_without_its_end_of_line_counts(tmp_path: Path) -> None:
    write_plan(tmp_path, 2)
    done(tmp_path, DEAD, 0)
    torn(tmp_path, DEAD, END)
    assert some(tmp_path) == {"done": 2}


@pytest.mark.parametrize(
    "rest", [b"\0\0\0\0\n", b'{"event": "end", "number": 1, "case": "\xff\xfe"}\n', b"\n\n[1]\n7\n"]
)
def test_what_a_broken_disk_left_hides_no_other_line(tmp_path: Path, rest: bytes) -> None:
    write_plan(tmp_path, 3)
    done(tmp_path, DEAD, 0)
    torn(tmp_path, DEAD, rest)
    done(tmp_path, DEAD, 2)
    assert numbers(tmp_path) == [(1, 0)]
    assert some(tmp_path) == {"done": 2, "pending": 1}


def test_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    write_plan(
        tmp_path, [{"case": f"{n}\udcff", "image": f"\udcff💀\udc80\\{n}"} for n in range(3)]
    )
    done(tmp_path, DEAD, 0, case="0\udcff", error='"\udcff" \\ud800')
    record(tmp_path, DEAD, "begin", 2, case="2\udcff")
    assert numbers(tmp_path) == [(1, 0), (2, 1)]
    assert some(tmp_path) == {"done": 1, "pending": 2}


@pytest.mark.parametrize("name", ["run[1]", "a*b?", "it's", "\udcff", "ü"])
def test_a_cohort_may_lie_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    write_plan(out, 2)
    done(out, DEAD, 0)
    assert numbers(out) == [(1, 0)]
    assert some(out) == {"done": 1, "pending": 1}


def test_records_are_read_while_they_are_written(tmp_path: Path) -> None:
    """Whatever is there when they are read counts once, and the rest is to be done."""
    write_plan(tmp_path, 20_000)
    (tmp_path / "records").mkdir()
    script = """
import os, sys
line = '{"event": "end", "worker": "w-1-0", "time": 1.0, "status": "done", "number": %d}\\n'
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for number in range(20_000):
    os.write(file, (line % number).encode())
"""
    records = str(tmp_path / "records/w-1-0.jsonl")
    with subprocess.Popen([sys.executable, "-c", script, records]) as writer:
        seen = [0]
        while writer.poll() is None:
            found = some(tmp_path)
            assert sum(found.values()) == 20_000
            seen.append(found.get("done", 0))
    assert seen == sorted(seen)
    assert some(tmp_path) == {"done": 20_000}


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no plan\.jsonl"):
        counts(tmp_path)
    with pytest.raises(CohortError, match=r"no plan\.jsonl"):
        next(todo(tmp_path))
