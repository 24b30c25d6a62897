"""A training or a reproduction that a signal or a full disk ends: in words, and what is kept."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from pathlib import Path

import pytest
from forked_commands import ForkedCommands
from small_experiments import SIZE

from mcmiad_monai.cli import training
from mcmiad_monai.cli.parser import main
from mcmiad_monai.research.bmad.phantom import write_bmad_phantom

SMALL = ["--weights", "random", "--text-prior", "hashing", "--set", "progress=false"]
SMALL += ["--set", "method#dim=64", "--set", "rounds=2", "--set", "batch_size=8"]
ENCODER = "test_efficientnet.r160_in1k"


def end(
    forked: ForkedCommands, line: list[object], folder: Path, awaited: str, number: int
) -> tuple[int | None, str]:
    """Run a command until a file is there, and send it a signal."""
    process, told = forked.start(["-m", "mcmiad_monai.cli", *line, "-q"], folder)
    while process.exitcode is None and not list(folder.glob(awaited)):
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    return process.exitcode, told.read_text()


def test_a_training_that_is_ended_goes_on_with_resume(
    cohort: Path, tmp_path: Path, forked: ForkedCommands
) -> None:
    root = tmp_path / "model"
    line: list[object] = ["train", cohort / "datalist.json", "--out", root, "--encoder", ENCODER]
    line += [*SMALL, "--epochs", "500"]
    code, told = end(forked, line, tmp_path, "model/models/last.pt", signal.SIGTERM)
    assert code == 143
    assert re.fullmatch(
        r"mcmiad: interrupted by SIGTERM; its finished epochs are in \S+/model/models/last\.pt; "
        r"go on with the same command and --resume\n",
        told,
    )
    assert not list(root.rglob(".mcmiad-*"))
    # of another training in the same folder, what is there does not count
    again = [*line, "--overwrite"]
    (root / "configs" / "train.yaml").unlink()
    code, told = end(forked, again, tmp_path, "model/configs/train.yaml", signal.SIGINT)
    assert code == 130
    assert re.fullmatch(
        r"mcmiad: interrupted by Ctrl-C; no epoch was finished; train \S+/model again with "
        r"--overwrite\n",
        told,
    )


def test_a_reproduction_that_is_ended_says_that_finished_runs_are_kept(
    tmp_path: Path, forked: ForkedCommands
) -> None:
    data = write_bmad_phantom(tmp_path / "data", sets=("brain",), size=SIZE)
    line: list[object] = ["reproduce", "--bmad", data, "--out", tmp_path / "out", *SMALL[:4]]
    line += ["--encoder", ENCODER, "--tables", "1", "--seeds", "0", "--no-adaptation"]
    code, told = end(forked, line, tmp_path, "out/features/*", signal.SIGTERM)
    assert (code, told) == (
        143,
        "mcmiad: interrupted by SIGTERM; finished runs are kept; go on with the same command\n",
    )


def test_a_training_whose_checkpoint_has_no_room_says_so_with_its_path(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["train", str(cohort / "datalist.json"), "--out", str(tmp_path / "m"), "-q", *SMALL]
    monkeypatch.setattr(training, "TRAINING_ROOM", 10**18)
    assert main([*line, "--encoder", ENCODER, "--epochs", "1"]) == 2
    assert "GB will be written" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    monkeypatch.undo()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert main([*line, "--encoder", ENCODER, "--epochs", "1"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"mcmiad: there is no room for {tmp_path}/m/models/best.pt (")
    assert not list((tmp_path / "m" / "models").glob("*.pt"))
