"""The command as a person types it: train, evaluate, infer, resume."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import pytest
import torch

from mcmiad_monai.cli.parser import main
from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.networks.package import load_package
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

    studies, out = sorted((cohort / "train").glob("*.nii.gz"))[:2], tmp_path / "heatmaps"
    infer = ["infer", *map(str, studies), "--bundle", str(root), "--out", str(out), *quiet]
    assert main([*infer, "--preview", "--json", "--set", "mask_threshold=0.0"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == json.loads((out / "scores.json").read_text())
    assert written["studies"] == len(list(out.rglob("*_heatmap.nii.gz"))) == len(studies)
    assert len(list(out.rglob("*_preview.png"))) == len(studies)
    assert nib.load(next(out.rglob("*_mask.nii.gz"))).get_fdata().any()  # above 0, not above 1

    # a study that fails is named, and the others are done
    (tmp_path / "bad.nii.gz").write_bytes(b"")
    one = ["infer", str(studies[0]), str(tmp_path / "bad.nii.gz"), "--out", str(tmp_path / "two")]
    model = str(root / "models" / "model.pt")
    assert main([*one, "--bundle", model, *quiet]) == 1
    assert "1 of 2 studies failed:" in capsys.readouterr().err

    # stopped after the last epoch, before the model was there
    head = load_package(root / "models" / "model.pt").weights()
    (root / "models" / "model.pt").unlink()
    again = [*train, "--resume", "--text-prior", "hashing", *SMALL, "--set", "batch_size=8"]
    capsys.readouterr()
    assert main(again) == 0
    assert f"trained bundle: {root}" in capsys.readouterr().out
    packaged = load_package(root / "models" / "model.pt").weights()
    assert all(torch.equal(packaged[name], tensor) for name, tensor in head.items())
    assert main(["verify", str(root)]) == 0

    # a resume that is refused says why, and changes nothing
    before = contents(root)
    for options, told in (
        (["--set", "seed=3"], "seed: 0 -> 3"),
        (["--set", "context=1", "--set", "dim=32"], "context: 3 -> 1; dim: 64 -> 32; "),
        (["--set", "slice_range=[0.2, 0.8]"], "slice_range: [0.0, 1.0] -> [0.2, 0.8]"),
        (["--tracking", "mlflow", "--set", "copies=2"], "copies: 1 -> 2"),
        (["--set", f"resume={root / 'models' / 'model.pt'}"], "cannot be trained further"),
    ):
        capsys.readouterr()
        assert main([*again, *options]) == 2
        assert told in capsys.readouterr().err
        assert contents(root) == before


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}
