from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcmiad_monai.cli import main
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.text_prior import TextPrior

SMALL = ["--set", "encoder_name=test_efficientnet.r160_in1k", "--set", "progress=false"]


def test_cases_lists_name_image_and_mask(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cases", str(cohort / "datalist.json"), "--split", "test"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4
    assert all(Path(image).is_file() and Path(mask).is_file() for _, image, mask in lines)


def test_missing_source_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cases", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err
    assert "nowhere" in told
    assert "Traceback" not in told


def test_info_counts_the_default_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    head = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("head"))
    _, _, trainable, mflop, _ = head.replace(",", "").split()
    assert 2_000_000 < int(trainable) <= 2_970_000
    assert 1_000 < int(mflop) <= 3_260


def test_prompts_are_shown_and_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "show"]) == 0
    assert capsys.readouterr().out.splitlines() == list(normal_prompts())
    out = tmp_path / "prior.safetensors"
    assert main(["prompts", "encode", "--encoder", "hashing", "--out", str(out)]) == 0
    prior = TextPrior.load(out)
    assert prior.embeddings.shape == (15, 512)
    assert list(prior.prompts) == list(normal_prompts())
    assert "hashing" in prior.encoder


def test_override_must_be_key_and_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["infer", "x", "--bundle", "b", "--out", "o", "--set", "max_epochs"])
    assert "KEY=VALUE" in capsys.readouterr().err


def test_train_evaluate_and_infer(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, root = str(cohort / "datalist.json"), tmp_path / "model"
    train = ["train", source, "--out", str(root), "--weights", "random", "--epochs", "1"]
    assert main([*train, "--text-prior", "hashing", *SMALL, "--set", "batch_size=8"]) == 0
    assert (root / "models" / "model.pt").is_file()

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


def test_folder_that_is_no_bundle_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "x.nii", "--bundle", "/nowhere", "--out", "o"]) == 2
    assert "is no bundle of this project" in capsys.readouterr().err
