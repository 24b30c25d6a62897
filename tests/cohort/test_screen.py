"""``mcmiad screen`` with real workers: every study once, whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import nibabel as nib
import numpy as np
import pytest
from cohort_records import begun, ends, events, wait_for

from mcmiad_monai.cli.parser import main
from mcmiad_monai.cohort.lock import only_driver

#: The command as a process of its own.
POISONED = (sys.executable, str(Path(__file__).parents[1] / "support" / "poisoned.py"))


def command(folder: Path, model: Path, out: Path, *more: str) -> list[str]:
    """The command with two workers on the CPU."""
    line = ["screen", str(folder), "--bundle", str(model), "--out", str(out), "--workers", "2"]
    return [*line, "--device", "cpu", "--threads", "1", *more]


def table(out: Path) -> dict[str, tuple[Any, ...]]:
    """Status, attempts and error of each study in the table of results."""
    query = f"SELECT \"case\", status, attempts, error FROM '{out}/results.parquet'"
    return {row[0]: row[1:] for row in duckdb.sql(query).fetchall()}


@pytest.mark.usefixtures("poisoned")
def test_every_study_ends_once_and_bad_ones_are_told(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, out = studies("killer", "a", "b", "broken", "c", "refused"), tmp_path / "out"
    line = command(folder, model, out)
    assert main(line) == 1
    expected = {"killer": "quarantined", "broken": "failed", "refused": "refused"}
    expected |= dict.fromkeys("abc", "done")
    assert ends(out) == expected
    found = table(out)
    assert {name: row[0] for name, row in found.items()} == expected
    assert found["killer"][1] == 3
    assert "a bug" in found["broken"][2]
    told = capfd.readouterr().err
    assert "3 done, 1 refused, 1 failed, 1 quarantined" in told
    assert "study broken failed: RuntimeError: a bug" in told
    before = events(out)
    assert main(line) == 1  # nothing is left to do
    assert events(out) == before


def test_heatmaps_are_those_of_infer(
    model: Path, studies: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = studies("a", "b", "c"), tmp_path / "out"
    assert main(command(folder, model, out)) == 0
    infer = ["infer", str(folder), "--bundle", str(model), "--out", str(tmp_path / "one")]
    assert main([*infer, "--set", "device=cpu"]) == 0
    for name in "abc":
        of_each = [root / name / f"{name}_heatmap.nii.gz" for root in (out, tmp_path / "one")]
        heat = [np.asarray(nib.load(path).dataobj) for path in of_each]
        assert heat[0].tobytes() == heat[1].tobytes()
        assert heat[0].max() > 0


@pytest.mark.usefixtures("poisoned")
def test_worker_that_is_killed_costs_one_try(
    model: Path, studies: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = studies("a", "slow", "b"), tmp_path / "out"

    def kill() -> None:
        os.kill(wait_for(lambda: begun(out, "slow")), signal.SIGKILL)
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    assert main(command(folder, model, out)) == 0
    killer.join()
    assert ends(out) == dict.fromkeys(("a", "b", "slow"), "done")
    assert table(out)["slow"][:2] == ("done", 2)


@pytest.mark.usefixtures("poisoned")
def test_signal_drops_the_study_and_the_same_command_goes_on(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder, out = studies("a", "slow", "b"), tmp_path / "out"
    line = command(folder, model, out)
    driver = subprocess.Popen([*POISONED, *line], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: begun(out, "slow"))
    wait_for(lambda: len(ends(out)) == 2)
    driver.terminate()
    told = driver.communicate(timeout=60)[1]
    assert driver.returncode == 143
    assert "interrupted by SIGTERM; 3 studies: 2 done, 1 pending" in told
    assert "go on with the same command" in told
    assert [e["event"] for e in events(out) if e["case"] == "slow"] == ["begin", "stopped"]
    (tmp_path / "go").touch()
    assert main(line) == 0
    assert ends(out) == dict.fromkeys(("a", "b", "slow"), "done")
    assert table(out)["slow"][1] == 1


@pytest.mark.usefixtures("poisoned")
def test_driver_that_is_killed_leaves_no_worker_and_no_study(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder, out = studies("slow1", "slow2", "a", "b"), tmp_path / "out"
    line = command(folder, model, out)
    driver = subprocess.Popen([*POISONED, *line])
    workers = [wait_for(lambda name=name: begun(out, name)) for name in ("slow1", "slow2")]
    driver.kill()
    driver.wait()
    os.kill(workers[0], signal.SIGKILL)  # the machine was short of memory
    (tmp_path / "go").touch()
    for worker in workers:
        wait_for(lambda worker=worker: not Path(f"/proc/{worker}").exists())
    # the other one has ended what it had in hand
    assert ends(out) == dict.fromkeys(("a", "b", "slow2"), "done")
    assert main(line) == 0
    assert ends(out) == dict.fromkeys(("slow1", "slow2", "a", "b"), "done")
    assert table(out)["slow1"][1] == 2


def test_another_model_or_other_options_are_refused(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = studies("a"), tmp_path / "out"
    assert main(command(folder, model, out, "--keep", "none")) == 0
    before = events(out)
    assert not (out / "a").exists()
    other = tmp_path / "other.pt"
    other.write_bytes(model.read_bytes() + b"0")
    assert main(command(folder, other, out, "--keep", "none")) == 2
    assert "model_file was" in capsys.readouterr().err
    assert main(command(folder, model, out)) == 2
    assert "keep was none and is all" in capsys.readouterr().err
    half = ("--keep", "none", "--set", "mask_threshold=0.5")
    assert main(command(folder, model, out, *half)) == 2
    assert events(out) == before


def test_what_failed_is_done_anew_when_that_is_asked_for(
    model: Path, studies: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = studies("a", "refused"), tmp_path / "out"
    assert main(command(folder, model, out)) == 1
    shutil.copy(folder / "a.nii.gz", folder / "refused.nii.gz")  # it is mended
    assert main(command(folder, model, out)) == 1
    assert main(command(folder, model, out, "--again", "failed")) == 1
    assert table(out)["refused"][0] == "refused"
    assert main(command(folder, model, out, "--again", "refused")) == 0
    assert table(out)["refused"][0] == "done"


def test_shards_make_the_whole_and_collect_says_what_is_pending(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = studies("a", "b", "c"), tmp_path / "out"
    line = command(folder, model, out, "--engine", "shard", "--keep", "none", "--shard")
    collect = ["screen", "--out", str(out), "--collect"]
    assert main([*line, "0/2"]) == 3
    assert ends(out) == {"a": "done", "c": "done"}
    assert main(collect) == 3
    assert table(out)["b"][0] == "pending"
    assert main([*line, "1/2"]) == 0
    assert main([*collect, "--json"]) == 0
    assert '"done": 3' in capsys.readouterr().out
    assert {row[0] for row in table(out).values()} == {"done"}
    assert main([*line, "2/2"]) == 2
    assert main(["screen", "--out", str(out), "--follow"]) == 0


def test_second_driver_is_refused(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with only_driver(tmp_path / "out", (0, 1)):
        assert main(command(studies("a"), model, tmp_path / "out")) == 2
    assert "another mcmiad screen works on" in capsys.readouterr().err


def test_model_that_cannot_be_opened_ends_the_command_at_once(
    studies: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "model.pt", tmp_path / "out"
    bad.write_bytes(b"no model")
    assert main(command(studies("a", "b"), bad, out)) == 2
    assert "model.pt" in capsys.readouterr().err
    assert not events(out)


def test_driver_needs_no_torch() -> None:
    modules = ["cli.cohort", "inference.settings"]
    modules += [f"cohort.{m}" for m in ("driver", "local", "plan", "sources", "state", "results")]
    listed = ", ".join(f"mcmiad_monai.{module}" for module in modules)
    script = f"import sys, {listed}; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"
