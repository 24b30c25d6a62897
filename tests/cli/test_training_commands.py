"""What train, infer and label-app pass on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_errors import refused

from mcmiad_monai.cli.parser import main


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
    assert main([*command, "--epochs", "3", "--set", "max_epochs=7"]) == 0
    assert opened.pop().overrides["max_epochs"] == 7  # the longer name wins
    assert opened[0].tracking is None
    options = ["--resume", "--weights", "random", "--text-prior", "hashing", "--tracking", "mlflow"]
    options += ["--image-name", "flair", "--device", "cpu", "-q", "--preset", "paper"]
    options += ["--method", "memory", "--score", "memory-l2"]
    options += ["--encoder", "resnet18"]
    assert main([*command, *options]) == 0
    assert opened[1].overrides == {
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
    assert opened[1].tracking == "mlflow"


def test_trained_bundle_is_resumed_or_overwritten_only_if_asked(
    opened: list[SimpleNamespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    command = ["train", str(tmp_path), "--out", str(out)]
    assert main(command) == 0
    (out / "models" / "model.pt").write_text("weights")
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
    assert (out / "models" / "model.pt").read_text() == "weights"  # until there is a new one
    assert len(opened) == 3


def test_app_is_laid_out_with_all_bundles_or_the_named_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label-app", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "all" / "model").iterdir())) == 4
    assert "monailabel start_server --app" in capsys.readouterr().out
    named = ["--bundle", "liver_ct_anomaly"]
    assert main(["label-app", str(tmp_path / "one"), *named]) == 0
    assert [p.name for p in (tmp_path / "one" / "model").iterdir()] == ["liver_ct_anomaly"]
