"""What does not depend on the modality, on brain MRI: options, figures, resuming, messages."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from small_bundles import why_refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcmiad_monai.bundle import compare_checksums, copy_bundle, open_workflow
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.errors import BundleError
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.training.method import preset
from mcmiad_monai.training.trainer import HeadTrainer

NAME = "brain_mri_anomaly"


def test_model_card_says_which_thresholds_are_not_set(brain: Any) -> None:
    card = (brain.root / "models" / "MODEL_CARD.md").read_text()
    assert "threshold not set" in card  # two healthy validation studies carry no 5 % rate
    assert load_package(brain.model).trained_with["slice_range"] == [0.3, 0.8]


def test_training_writes_the_digests_of_the_bundle(brain: Any) -> None:
    assert compare_checksums(brain.root) == {}
    written = (brain.root / "SHA256SUMS").read_text()
    assert "  models/model.pt\n" in written
    assert "  configs/metadata.json\n" in written


def test_training_writes_loss_and_key_metric_to_tensorboard(brain: Any) -> None:
    tags: dict[str, int] = {}
    for file in (brain.root / "eval").rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file))
        events.Reload()
        tags.update({tag: len(events.Scalars(tag)) for tag in events.Tags()["scalars"]})
    assert tags["train_loss"] > 0
    assert tags["val_slice_auroc"] == 2
    assert tags["val_neg_loss"] == 2


@pytest.mark.parametrize("name", ["brain_mri_anomaly", "unified_anomaly"])
def test_evaluation_reports_every_figure(train: Any, name: str, tmp_path: Path) -> None:
    trained = train(name)
    options = trained.options(output_dir=str(tmp_path))
    open_workflow(trained.root, ("train", "evaluate"), options).run()
    report = json.loads((tmp_path / "metrics.json").read_text())
    names = {"slice_auroc", "slice_ap", "volume_auroc", "pixel_auroc", "pixel_ap", "aupro", "froc"}
    names |= {"pixel_auroc_foreground", "pixel_dice_at_threshold", "sensitivity_at_1fp"}
    assert names <= set(report["metrics"])
    rates = {k: v for k, v in report["metrics"].items() if not k.endswith("_threshold")}
    assert all(0 <= value <= 1 for value in rates.values())
    low, high = (report["intervals"]["slice_auroc"][end] for end in ("low", "high"))
    assert low <= report["metrics"]["slice_auroc"] <= high
    assert report["calibration"] == load_package(trained.model).calibration
    assert report["failed"] == {}
    unified = name == "unified_anomaly"
    assert report["studies"] == (12 if unified else 4)
    # [0.3, 0.8) of ten slices; all of them and of pictures
    assert report["slices"] == (4 * (10 + 10 + 1) if unified else 4 * 5)
    assert len(list(csv.DictReader((tmp_path / "studies.csv").open()))) == report["studies"]


def test_one_bad_study_never_stops_the_others(
    brain: Any, monai_process: Any, tmp_path: Path
) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    cases = find_cases(brain.source, "test")[:2]
    for case in cases:
        shutil.copy(case["image"], studies / f"{case['case']}.nii.gz")
    (studies / "broken.nii.gz").write_bytes(Path(cases[0]["image"]).read_bytes()[:200])
    # from a working directory that is not the bundle's, and without --bundle_root
    done = monai_process(
        "run",
        config_file=brain.config(),
        dataset_dir=studies,
        output_dir=tmp_path / "out",
        progress="False",
    )
    assert done.returncode == 1, done.told
    assert "2 studies done, 1 failed" in done.told
    assert "Traceback" not in done.told
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(report["failed"]) == ["broken"]
    assert len(list((tmp_path / "out").glob("*/*_scores.json"))) == 2


def test_unknown_override_is_refused_with_a_hint(brain: Any, monai_process: Any) -> None:
    done = monai_process("run", config_file=brain.config(), batchsize=4)
    assert done.returncode != 0
    assert "unknown override --batchsize (did you mean --batch_size?)" in done.told
    with pytest.raises(BundleError, match="max_epochs"):
        open_workflow(brain.root, "train", {"epochs_max": 1})


def test_folder_of_pictures_in_the_style_of_bmad(brain: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("test/good", "test/Ungood/img"):
        (tmp_path / folder).mkdir(parents=True)
        y, x = np.mgrid[:96, :80]
        disc = ((y - 48) / 40) ** 2 + ((x - 40) / 32) ** 2 < 1
        grey = np.where(disc, 120 + 10 * rng.standard_normal(disc.shape), 0).clip(0, 255)
        Image.fromarray(grey.astype(np.uint8)).save(tmp_path / folder / "a.png")
    (tmp_path / "test/Ungood/label").mkdir()
    label = np.zeros((96, 80), np.uint8)
    label[40:50, 30:40] = 255
    Image.fromarray(label).save(tmp_path / "test/Ungood/label/a.png")
    overrides = {
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "slice_range": [0, 1],
        "progress": False,
    }
    open_workflow(brain.root, "inference", overrides).run()
    heatmaps = sorted((tmp_path / "out").rglob("*_heatmap.tiff"))
    assert [Image.open(path).size for path in heatmaps] == [(80, 96)] * 2
    volumes = {**overrides, "output_dir": str(tmp_path / "volumes"), "pictures": False}
    open_workflow(brain.root, "inference", volumes).run()
    stored = sorted((tmp_path / "volumes").rglob("*_heatmap.nii.gz"))
    assert [nib.load(path).shape for path in stored] == [(80, 96, 1)] * 2
    np.testing.assert_array_equal(
        np.asarray(Image.open(heatmaps[0])), nib.load(stored[0]).get_fdata()[:, :, 0].T
    )


def test_resumed_training_equals_a_straight_one(brain: Any, tmp_path: Path) -> None:
    root = copy_bundle(NAME, tmp_path / NAME)
    first = brain.root / "models" / "epoch1.pt"  # where a run was stopped
    shutil.copy(first, root / "models" / "best.pt")  # of one epoch, the first is the best
    open_workflow(root, "train", brain.small(resume=str(first))).run()
    resumed, straight = (
        torch.load(folder / "models" / "last.pt", weights_only=True)
        for folder in (root, brain.root)
    )
    assert torch.load(first, weights_only=True)["epoch"] == 1
    assert resumed["epoch"] == straight["epoch"] == 2
    for name, tensor in straight["network"].items():
        torch.testing.assert_close(resumed["network"][name], tensor, rtol=0, atol=1e-6)
    assert (root / "models" / "model.pt").is_file()


def test_training_whose_folder_vanished_is_an_error_and_packages_nothing(
    brain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_bundle(NAME, tmp_path / NAME)
    monkeypatch.setattr(HeadTrainer, "run", lambda _: shutil.rmtree(root / "models"))
    assert "its disk is gone" in why_refused(root, "train", brain.small())
    assert not (root / "models").exists()


def test_checkpoint_is_no_model(brain: Any) -> None:
    options = brain.options(model_path=str(brain.root / "models" / "last.pt"))
    assert "not a packaged model" in why_refused(brain.root, "inference", options)


def test_train_from_a_plain_folder_holds_studies_out_by_itself(
    brain: Any, cohort: Path, tmp_path: Path
) -> None:
    root = copy_bundle(NAME, tmp_path / NAME)
    more = {"val_fraction": 0.25, "cache": "disk", "fusion_mode": "prompts"}
    options = brain.small(max_epochs=1, dataset_dir=str(cohort / "train"), **more)
    open_workflow(root, "train", options).run()
    training = load_package(root / "models" / "model.pt").provenance["training"]
    assert (training["training_studies"], training["validation_studies"]) == (3, 1)
    assert list((root / "eval" / "features").glob("*/features"))


def test_pretrained_weights_without_a_network_name_the_way_out(
    brain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    root = copy_bundle(NAME, tmp_path / NAME)
    message = why_refused(root, "train", brain.small(weights="pretrained"))
    for needed in (
        "test_efficientnet.r160_in1k",
        "model.safetensors",
        "--weights packaged",
        "--weights FILE",
    ):
        assert needed in message
    assert not (root / "models" / "model.pt").exists()


def test_tracking_with_mlflow(brain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    root = copy_bundle(NAME, tmp_path / NAME)
    open_workflow(root, "train", brain.small(max_epochs=1), tracking="mlflow").run()
    client = mlflow.MlflowClient(f"sqlite:///{root}/eval/mlruns.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1
    assert "val_slice_auroc" in runs[0].data.metrics


def test_model_of_another_modality_is_refused(brain: Any) -> None:
    options = brain.options(modality="liver_ct")
    assert "trained for brain_mri" in why_refused(brain.root, "inference", options)


@pytest.mark.parametrize("word", ["default", "paper"])
def test_one_word_sets_the_method(cohort: Path, tmp_path: Path, word: str) -> None:
    root = copy_bundle(NAME, tmp_path / NAME)
    options = {"preset": word, "dataset_dir": str(cohort), "jitter_scale": 7.0}
    method = open_workflow(root, "train", options).parser.get_parsed_content("method")
    brain = {"field_of_view": "foreground", "context": 3, "copies": 1, "max_epochs": 50}
    assert method == preset(word, jitter_scale=7.0, **(brain if word == "default" else {}))
    assert method.learning_rate == {"default": 1e-3, "paper": 2e-4}[word]
    assert method.max_epochs * (1 + method.copies) == 100
    assert method.batch_size == 16
