"""What train, infer and label-app pass on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from cli_errors import refused

from mcmiad_monai.cli.parser import main
from mcmiad_monai.files.writing import write_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=5", 5),
        ("learning_rate=0.001", 0.001),
        ("learning_rate=1e-3", 0.001),
        ("slice_range=[0.3, 0.8]", [0.3, 0.8]),
        ("progress=false", False),
        ("resume=null", None),
        ("dataset_dir=/a=b", "/a=b"),
        ("train#trainer#amp=true", True),
        ("device=$torch.device('cpu')", "$torch.device('cpu')"),
    ],
)
def test_override_is_read_as_a_value(
    opened: list[SimpleNamespace], tmp_path: Path, text: str, expected: Any
) -> None:
    assert main(["train", "x", "--out", str(tmp_path / "o"), "--set", text]) == 0
    found = opened[0].overrides[text.partition("=")[0]]
    assert found == expected
    assert type(found) is type(expected)


def test_train_passes_only_what_was_given(opened: list[SimpleNamespace], tmp_path: Path) -> None:
    out = tmp_path / "mine"
    command = ["train", str(tmp_path), "--out", str(out)]
    always = {"dataset_dir": str(tmp_path), "logging_file": False}
    assert main([*command, "--epochs", "3"]) == 0
    assert opened[0].overrides == {**always, "max_epochs": 3}
    assert main([*command, "--resume", "--epochs", "3", "--set", "max_epochs=7"]) == 0
    assert opened.pop().overrides["max_epochs"] == 7  # the longer name wins
    assert opened[0].tracking is None
    options = ["--resume", "--weights", "random", "--text-prior", "hashing", "--tracking", "mlflow"]
    options += ["--image-name", "flair", "--device", "cpu", "-q", "--preset", "paper"]
    options += ["--method", "memory", "--score", "memory-l2"]
    options += ["--encoder", "resnet18"]
    assert main([*command, *options]) == 0
    # MONAI writes for its tracking when a bundle is opened: the checkpoint is looked at before
    assert (opened[1].tracking, opened[2].tracking) == (None, "mlflow")
    assert opened[2].overrides == {
        **always,
        "encoder_name": "resnet18",
        "weights": "random",
        "text_prior": "hashing",
        "studies#image_name": "flair",
        "device": "cpu",
        "progress": False,
        "preset": "paper",
        "method#parts": "memory",
        "method#score": "memory-l2",
        "resume": str(out / "models" / "last.pt"),
    }


def test_trained_bundle_is_resumed_or_overwritten_only_if_asked(
    opened: list[SimpleNamespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    command = ["train", str(tmp_path), "--out", str(out)]
    assert main(command) == 0
    settings = out / "configs" / "train.yaml"
    settings.write_text("edited: true")
    capsys.readouterr()
    message = refused(capsys, *command)
    assert "--resume" in message
    assert "--overwrite" in message
    assert main([*command, "--resume"]) == 0
    assert settings.read_text() == "edited: true"
    assert main([*command, "--overwrite"]) == 0
    assert "edited" not in settings.read_text()
    assert len(opened) == 3


def test_a_finished_bundle_stays_until_the_new_one_is_complete(
    opened: list[SimpleNamespace],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "mine"
    command = ["train", str(tmp_path), "--out", str(out)]
    assert main(command) == 0
    (out / "models" / "model.pt").write_text("old")
    (out / "configs" / "train.yaml").write_text("edited: true")
    before = contents(out)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        run_as(patch, MagicMock(side_effect=RuntimeError("no memory")))
        assert "no memory" in refused(
            capsys, *command, "--overwrite", "--bundle", "liver_ct_anomaly"
        )
        assert contents(out) == before
    assert main([*command, "--resume"]) == 0  # goes on with the new one
    assert opened[-1].overrides["resume"] == str(out / ".new" / "models" / "last.pt")
    assert opened[-1].overrides["output_dir"] == str(out / "eval")
    assert (out / "models" / "model.pt").read_text() == "new"
    assert "modality: liver_ct" in (out / "configs" / "train.yaml").read_text()
    assert not (out / ".new").exists()
    assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize("option", ["--resume", "--overwrite", "-q"])
def test_folder_that_is_being_trained_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    out = tmp_path / "mine"
    write_text(out / "models" / ".training.lock", json.dumps({"host": "far", "pid": 7}))
    before = contents(out, hidden=True)
    message = refused(capsys, "train", str(tmp_path), "--out", str(out), option)
    assert "is being trained by process 7 on far since" in message
    assert contents(out, hidden=True) == before


@pytest.mark.parametrize("lost", ["", "models"])
def test_output_that_vanished_is_an_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    out = tmp_path / "mine"
    run_as(monkeypatch, lambda: shutil.rmtree(out / lost))
    assert "its disk is gone" in refused(capsys, "train", str(tmp_path), "--out", str(out))


@pytest.mark.parametrize("options", [["--resume"], ["--bundle", "none"]])
def test_refused_training_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    refused(capsys, "train", str(tmp_path), "--out", str(tmp_path / "a" / "b"), *options)
    assert not (tmp_path / "a").exists()


def run_as(patch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """Open a training that does this when it runs."""
    patch.setattr("mcmiad_monai.bundle.open_workflow", lambda *_, **__: SimpleNamespace(run=run))


def contents(folder: Path, *, hidden: bool = False) -> dict[str, bytes]:
    """Files of a folder, by default the visible ones."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in files.items()
        if hidden or not any(part.startswith(".") for part in name.parts)
    }


def test_app_is_laid_out_with_all_bundles_or_the_named_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label-app", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "all" / "model").iterdir())) == 4
    assert "monailabel start_server --app" in capsys.readouterr().out
    named = ["--bundle", "liver_ct_anomaly"]
    assert main(["label-app", str(tmp_path / "one"), *named]) == 0
    assert [p.name for p in (tmp_path / "one" / "model").iterdir()] == ["liver_ct_anomaly"]
