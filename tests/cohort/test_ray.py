"""A cohort by Ray, whose workers are killed. Ray starts once for all tests of this file."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from cohort_records import begun, ends, events, wait_for

from mcmiad_monai.cli.parser import main
from mcmiad_monai.cohort import ray_workers
from mcmiad_monai.cohort.driver import WorkersError
from mcmiad_monai.cohort.ledger import Ledger
from mcmiad_monai.cohort.ray_workers import RayWorkers

SUPPORT = Path(__file__).resolve().parents[1] / "support"
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def command(folder: Path, model: Path, out: Path) -> list[str]:
    line = ["screen", str(folder), "--bundle", str(model), "--out", str(out), "--device", "cpu"]
    return [*line, "--engine", "ray"]


def listening() -> set[str]:
    """Addresses on which this process and those below it listen."""
    this = psutil.Process()
    found = set()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            sockets = process.net_connections("inet")
            found |= {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    return found


def folders_of_ray() -> list[Path]:
    """Temporary folders of a Ray that this process started."""
    return list(ray_workers.SHORT.glob(f".mcmiad-*-{os.getpid()}-*.r"))


@pytest.mark.long
@pytest.mark.usefixtures("poisoned")
def test_every_study_ends_once_whatever_is_killed(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A study that kills its worker, a worker that is killed from outside, and one refused."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with the extra cohort")
    path = [str(SUPPORT.parents[1]), str(SUPPORT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))  # of Ray's processes
    handler = signal.getsignal(signal.SIGTERM)
    folder, out = studies("a", "killer", "slow", "refused", "b"), tmp_path / "out"
    seen: dict[str, Any] = {}

    def disturb() -> None:
        process = wait_for(lambda: begun(out, "slow"), 600)
        seen.update(listening=listening(), folders=folders_of_ray())
        os.kill(process, signal.SIGKILL)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=disturb)
    thread.start()
    assert main([*command(folder, model, out), "--workers", "2", "--attempts", "2"]) == 1
    thread.join()
    expected = {"killer": "quarantined", "refused": "refused"}
    assert ends(out) == {**dict.fromkeys(["a", "b", "slow"], "done"), **expected}
    begins = [e["case"] for e in events(out) if e["event"] == "begin"]
    assert {case: begins.count(case) for case in begins} == {
        **dict.fromkeys(["a", "b", "refused"], 1),
        **dict.fromkeys(["killer", "slow"], 2),
    }
    assert seen["listening"]
    assert seen["listening"] <= LOOPBACK
    assert len(seen["folders"]) == 1
    assert not folders_of_ray()
    assert signal.getsignal(signal.SIGTERM) == handler
    told = capfd.readouterr()
    assert "3 done, 1 refused, 1 quarantined" in told.err
    assert "raylet" not in told.out + told.err


def test_a_study_is_dropped_in_the_name_of_a_worker_that_was_ended(tmp_path: Path) -> None:
    study, other = {"number": 1, "case": "a"}, {"number": 2, "case": "b"}
    ledger = Ledger(tmp_path, "host-1-0")
    ledger.begin(study)
    ledger.close()
    with ledger.path.open("ab") as file:
        file.write(b'{"event": "en')  # the worker was killed while it wrote
    ray_workers._drop(tmp_path, "host-1-0", study)
    assert '"stopped"' in ledger.path.read_text(encoding="utf-8").splitlines()[-1]
    ray_workers._drop(tmp_path, "host-1-0", study)  # dropped once
    ray_workers._drop(tmp_path, "host-1-0", other)  # not begun
    ray_workers._drop(tmp_path, "host-2-0", study)  # of a worker that has written nothing
    assert ledger.path.read_text(encoding="utf-8").count('"stopped"') == 1


def test_without_ray_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "find_spec", {}.get)
    with pytest.raises(WorkersError, match=r"pip install 'mcmiad-monai\[cohort\]'"):
        RayWorkers(dict, tmp_path, 2)


def test_a_cluster_needs_a_number_of_workers(
    model: Path,
    studies: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = command(studies("a"), model, tmp_path / "out")
    assert main([*line, "--address", "localhost:1"]) == 2
    assert "--address needs --workers N" in capsys.readouterr().err


def test_what_needs_no_ray_does_not_import_it() -> None:
    script = "import sys, mcmiad_monai.cohort.ray_workers; print('ray' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"
