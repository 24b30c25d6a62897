"""A cohort by a real Slurm of this machine, whose tasks are killed."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import psutil
import pytest
from cohort_records import begun, ends, events, wait_for

from mcmiad_monai.cli.parser import main
from mcmiad_monai.data.cases.names import plain_name

ROOT = Path(__file__).resolve().parents[2]
POISONED = ROOT / "tests" / "support" / "poisoned.py"
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
pytestmark = pytest.mark.long


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slurm's daemons, and its commands that talk to them."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [name for name in DAEMONS if shutil.which(name, path=path) is None]:
        pytest.skip(f"{', '.join(missing)} not installed; .ci/install-slurm installs Slurm")
    script, folder = ROOT / ".ci" / "slurm", tmp_path / "daemons"
    conf = subprocess.check_output([script, "start", folder], text=True).strip()
    monkeypatch.setenv("SLURM_CONF", conf)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(POISONED.parent)]))
    try:
        yield
    finally:
        subprocess.run([script, "stop", folder], check=True)


def asked(*command: str) -> str:
    return subprocess.check_output(command, text=True)


def wait_for_jobs() -> None:
    wait_for(lambda: not asked("squeue", "--noheader"), 300)


@pytest.mark.usefixtures("slurm")
def test_array_that_is_killed_goes_on_and_is_collected(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = ["a", "killer", "slow", "b", "refused", "c", "it's d", "e"]
    folder, out = studies(*names), tmp_path / "out folder"
    line = ["screen", str(folder), "--bundle", str(model), "--out", str(out), "--device", "cpu"]
    assert main([*line, "--engine", "slurm", "--workers", "2", "--sbatch", "time=01:00:00"]) == 0
    submits = capfd.readouterr().out
    array = out / "slurm" / "array.sbatch"
    text = array.read_text(encoding="utf-8")
    program = shlex.join([sys.executable, "-m", "mcmiad_monai.cli"])
    assert program in text
    array.write_text(text.replace(program, shlex.join([sys.executable, str(POISONED)])), "utf-8")

    subprocess.run(["sh", "-ec", submits], check=True)
    os.kill(wait_for(lambda: begun(out, "slow"), 300), signal.SIGKILL)  # a worker of a task
    wait_for(lambda: events_of(out, "slow") > 1, 300)
    os.kill(driver_of(out, begun(out, "slow")), signal.SIGKILL)  # a whole task
    wait_for_jobs()
    counted = "SELECT status, count(*) FROM read_parquet(?) GROUP BY ALL"
    first = dict(duckdb.execute(counted, [str(out / "results.parquet")]).fetchall())
    assert first["pending"] >= 1

    (tmp_path / "go").touch()
    subprocess.run(["sh", "-ec", submits], check=True)
    wait_for_jobs()
    expected = {"killer": "quarantined", "refused": "refused"}
    assert ends(out) == {**{plain_name(n): "done" for n in names if n not in expected}, **expected}
    rows = duckdb.execute(counted, [str(out / "results.parquet")]).fetchall()
    assert dict(rows) == {"done": 6, "refused": 1, "quarantined": 1}
    assert "6 done" in (out / "slurm" / "collect.log").read_text(encoding="utf-8")


def driver_of(out: Path, worker: int | None) -> int:
    """Number of the process whose worker this is, as its lock says."""
    (lock,) = [
        words
        for file in (out / "locks").iterdir()
        if (words := file.read_text(encoding="utf-8").split())
        and int(words[1]) in {p.pid for p in psutil.Process(worker).parents()}
    ]
    return int(lock[1])


def events_of(out: Path, case: str) -> int:
    """How often a study was begun."""
    return sum(e["event"] == "begin" and e["case"] == case for e in events(out))


@pytest.mark.usefixtures("slurm")
def test_jobs_are_submitted_by_the_command(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, out = studies("a", "b"), tmp_path / "out"
    line = ["screen", str(folder), "--bundle", str(model), "--out", str(out), "--device", "cpu"]
    assert main([*line, "--engine", "slurm", "--workers", "2", "--submit"]) == 0
    assert "array 1, collecting job 2" in capfd.readouterr().out
    wait_for_jobs()
    assert ends(out) == {"a": "done", "b": "done"}
    assert main([*line, "--collect"]) == 0
