"""What the tests of all bundles leave out, on brain MRI: options, trackers, messages."""

from __future__ import annotations

import csv
import json
import socket
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcmiad_monai.bundle import BundleError, copy_bundle, open_workflow
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.errors import unwrap
from mcmiad_monai.files import save_torch
from mcmiad_monai.inference.cohort import CohortIncomplete
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.training.method import preset

NAME = "brain_mri_anomaly"
SMALL: dict[str, Any] = {
    "encoder_name": "test_efficientnet.r160_in1k",
    "weights": "random",
    "text_prior": "hashing",
    "max_epochs": 2,
    "export": False,
    "batch_size": 8,
    "learning_rate": 0.002,
    "slice_range": [0.3, 0.8],
    "device": "cpu",
    "progress": False,
    "dim": 64,
    "hidden": 128,
    "rounds": 2,
}


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on phantoms; its files are read by the tests below."""
    root = copy_bundle(NAME, tmp_path_factory.mktemp("bundle") / NAME)
    overrides = {**SMALL, "dataset_dir": str(cohort / "datalist.json")}
    open_workflow(root, "train", overrides).run()
    return root


def test_training_leaves_a_package_that_stands_alone(trained: Path) -> None:
    detector = load_package(trained / "models" / "model.pt")
    assert detector.provenance["encoder"]["weights"] == "random, seed 0"
    assert detector.provenance["training"]["training_studies"] == 4
    assert detector.provenance["training"]["slice_range"] == [0.3, 0.8]
    assert detector.calibration["pixel_threshold"] > 0
    assert detector.calibration["normal_volumes"] >= 2
    with torch.no_grad():
        heatmap = detector(torch.rand(1, 1, 224, 224))
    assert torch.isfinite(heatmap).all()


def test_model_card_warns_of_random_weights_and_of_the_stand_in_for_clip(trained: Path) -> None:
    card = (trained / "models" / "MODEL_CARD.md").read_text()
    assert "encoder has random weights" in card
    assert "text prior is not CLIP" in card
    assert "threshold not set" in card  # two healthy validation studies carry no 5 % rate


def test_training_writes_loss_and_key_metric_to_tensorboard(trained: Path) -> None:
    tags: dict[str, int] = {}
    for file in (trained / "eval").rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file))
        events.Reload()
        tags.update({tag: len(events.Scalars(tag)) for tag in events.Tags()["scalars"]})
    assert tags["train_loss"] > 0
    assert tags["val_slice_auroc"] == 2
    assert tags["val_neg_loss"] == 2


def test_evaluation_reports_every_figure(trained: Path, cohort: Path, tmp_path: Path) -> None:
    overrides = {
        "dataset_dir": str(cohort / "datalist.json"),
        "output_dir": str(tmp_path),
        "progress": False,
    }
    open_workflow(trained, ("train", "evaluate"), overrides).run()
    report = json.loads((tmp_path / "metrics.json").read_text())
    names = {"slice_auroc", "slice_ap", "volume_auroc", "pixel_auroc", "pixel_ap", "aupro", "froc"}
    names |= {"pixel_auroc_foreground", "pixel_dice_at_threshold", "sensitivity_at_1fp"}
    assert names <= set(report["metrics"])
    rates = {k: v for k, v in report["metrics"].items() if not k.endswith("_threshold")}
    assert all(0 <= value <= 1 for value in rates.values())
    low, high = (report["intervals"]["slice_auroc"][end] for end in ("low", "high"))
    assert low <= report["metrics"]["slice_auroc"] <= high
    assert report["calibration"] == load_package(trained / "models" / "model.pt").calibration
    assert report["studies"] == 4
    assert report["slices"] == 4 * 5  # [0.3, 0.8) of ten slices
    assert len(list(csv.DictReader((tmp_path / "studies.csv").open()))) == 4


def test_inference_writes_heatmap_mask_and_scores_in_each_study_s_geometry(
    trained: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("inference went for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    overrides = {
        "dataset_dir": str(cohort / "datalist.json"),
        "output_dir": str(tmp_path),
        "progress": False,
    }
    open_workflow(trained, "inference", overrides).run()
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["failed"] == {}
    for case in find_cases(cohort / "datalist.json", "test"):
        name = case["case"]
        image = nib.load(case["image"])
        heatmap = nib.load(tmp_path / name / f"{name}_heatmap.nii.gz")
        mask = nib.load(tmp_path / name / f"{name}_mask.nii.gz")
        for written, dtype in ((heatmap, np.float32), (mask, np.uint8)):
            assert written.shape == image.shape
            assert written.get_data_dtype() == dtype
            np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
        heat = heatmap.get_fdata()
        assert heat.max() > 0
        np.testing.assert_array_equal(np.asarray(mask.dataobj) == 1, heat > 1)
        scores = json.loads((tmp_path / name / f"{name}_scores.json").read_text())
        assert scores["slices_scored"] == 5
        # the array index of a scored slice is one with heat
        used = np.flatnonzero(heat.any(tuple(a for a in range(3) if a != scores["slice_axis"])))
        assert set(used) == {entry["index"] for entry in scores["slices"]}
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert len(rows) == 4 * 5


def test_unknown_override_is_refused_with_a_hint(trained: Path, monai_process: Any) -> None:
    configuration = trained / "configs" / "inference.yaml"
    done = monai_process("run", config_file=configuration, batchsize=4)
    assert done.returncode != 0
    assert "unknown override --batchsize (did you mean --batch_size?)" in done.told
    with pytest.raises(BundleError, match="max_epochs"):
        open_workflow(trained, "train", {"epochs_max": 1})


def test_folder_of_pictures_in_the_style_of_bmad(trained: Path, tmp_path: Path) -> None:
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
    open_workflow(trained, "inference", overrides).run()
    heatmaps = sorted((tmp_path / "out").rglob("*_heatmap.tiff"))
    assert [Image.open(path).size for path in heatmaps] == [(80, 96)] * 2
    volumes = {**overrides, "output_dir": str(tmp_path / "volumes"), "pictures": False}
    open_workflow(trained, "inference", volumes).run()
    stored = sorted((tmp_path / "volumes").rglob("*_heatmap.nii.gz"))
    assert [nib.load(path).shape for path in stored] == [(80, 96, 1)] * 2
    np.testing.assert_array_equal(
        np.asarray(Image.open(heatmaps[0])), nib.load(stored[0]).get_fdata()[:, :, 0].T
    )


def test_training_resumes_from_the_last_epoch(cohort: Path, trained: Path, tmp_path: Path) -> None:
    root = copy_bundle(NAME, tmp_path / NAME)
    last = root / "models" / "last.pt"
    overrides = {**SMALL, "dataset_dir": str(cohort / "datalist.json"), "schedule": "step"}
    open_workflow(root, "train", {**overrides, "max_epochs": 1}).run()
    open_workflow(root, "train", {**overrides, "resume": str(last)}).run()
    content = torch.load(last, weights_only=True)
    assert content["epoch"] == 2
    assert (root / "models" / "model.pt").is_file()
    # a checkpoint is no package, and the other way round
    save_torch(content, tmp_path / "package.pt")
    overrides = {"model_path": str(tmp_path / "package.pt"), "dataset_dir": str(cohort)}
    with pytest.raises(RuntimeError) as caught:
        open_workflow(trained, "inference", overrides).run()
    assert "not a packaged model" in str(unwrap(caught.value))


def test_train_from_a_plain_folder_holds_studies_out_by_itself(
    cohort: Path, tmp_path: Path
) -> None:
    root = copy_bundle(NAME, tmp_path / NAME)
    overrides = {**SMALL, "max_epochs": 1, "dataset_dir": str(cohort / "train")}
    overrides |= {"val_fraction": 0.25, "cache": "disk", "fusion_mode": "prompts"}
    open_workflow(root, "train", overrides).run()
    training = load_package(root / "models" / "model.pt").provenance["training"]
    assert (training["training_studies"], training["validation_studies"]) == (3, 1)
    assert list((root / "eval" / "features").glob("*/features"))


def test_pretrained_weights_without_a_network_name_the_way_out(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    root = copy_bundle(NAME, tmp_path / NAME)
    overrides = {**SMALL, "weights": "pretrained", "dataset_dir": str(cohort / "datalist.json")}
    with pytest.raises(RuntimeError) as caught:
        open_workflow(root, "train", overrides).run()
    message = str(unwrap(caught.value))
    assert "test_efficientnet.r160_in1k" in message
    assert "model.safetensors" in message
    assert "weights=" in message
    assert not (root / "models" / "model.pt").exists()


def test_tracking_with_mlflow(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    root = copy_bundle(NAME, tmp_path / NAME)
    overrides = {**SMALL, "max_epochs": 1, "dataset_dir": str(cohort / "datalist.json")}
    open_workflow(root, "train", overrides, tracking="mlflow").run()
    mlflow.set_tracking_uri(f"sqlite:///{root}/eval/mlruns.db")
    runs = mlflow.search_runs(search_all_experiments=True)
    assert len(runs) == 1
    assert "metrics.val_slice_auroc" in runs.columns


def test_model_of_another_modality_is_refused(trained: Path, cohort: Path) -> None:
    overrides = {"modality": "liver_ct", "dataset_dir": str(cohort)}
    with pytest.raises(RuntimeError) as caught:
        open_workflow(trained, "inference", overrides).run()
    assert "trained for brain_mri" in str(unwrap(caught.value))


def test_failed_cohort_is_an_exit_code_in_python_too(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    overrides = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out")}
    with pytest.raises(CohortIncomplete):
        open_workflow(trained, "inference", {**overrides, "progress": False}).run()


@pytest.mark.parametrize("word", ["default", "paper"])
def test_one_word_sets_the_method(cohort: Path, tmp_path: Path, word: str) -> None:
    root = copy_bundle(NAME, tmp_path / NAME)
    options = {"preset": word, "dataset_dir": str(cohort), "jitter_scale": 7.0}
    method = open_workflow(root, "train", options).parser.get_parsed_content("method")
    assert method == preset(word, jitter_scale=7.0)
    assert method.learning_rate == {"default": 1e-3, "paper": 2e-4}[word]
    assert (method.max_epochs, method.batch_size) == (100, 16)
