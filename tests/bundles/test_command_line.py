"""The command as a person types it: train, evaluate, infer, resume."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from mcmiad_monai.cli.parser import main
from mcmiad_monai.runtime.export import ONNX_MODULES

SMALL = ["--set", "encoder_name=test_efficientnet.r160_in1k", "--set", "progress=false"]
SMALL += ["--set", "method#dim=64", "--set", "rounds=2"]


def test_train_evaluate_and_infer(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, root = str(cohort / "datalist.json"), tmp_path / "model"
    train = ["train", source, "--out", str(root), "--weights", "random", "--epochs", "1"]
    assert main([*train, "--text-prior", "hashing", *SMALL, "--set", "batch_size=8"]) == 0
    assert (root / "models" / "model.pt").is_file()
    # and with it what the fast engines run, which evaluation and inference below then do
    extra = all(importlib.util.find_spec(name) for name in ONNX_MODULES)
    assert (root / "models" / "model.onnx").is_file() == extra

    quiet = ["--set", "progress=false"]
    assert main(["evaluate", source, "--bundle", str(root), "--out", str(tmp_path), *quiet]) == 0
    told = dict(
        line.split("\t") for line in capsys.readouterr().out.splitlines() if "auroc\t" in line
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert float(told["pixel_auroc"]) == pytest.approx(metrics["pixel_auroc"], abs=1e-4)

    study = next((cohort / "train").glob("*.nii.gz"))
    out = tmp_path / "heatmaps"
    assert main(["infer", str(study), "--bundle", str(root), "--out", str(out), *quiet]) == 0
    assert len(list(out.rglob("*_heatmap.nii.gz"))) == 1

    # MONAI's wrappers are taken off: what is left is the reason
    again = ["--resume", "--text-prior", "hashing", *SMALL, "--set", "batch_size=8"]
    assert main([*train, *again]) == 2
    assert "raise max_epochs" in capsys.readouterr().err
