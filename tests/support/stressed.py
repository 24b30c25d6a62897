"""A small packaged model, and what a stress test of it is asked for."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import small_detector

from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.calibration import Calibration
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.networks.memory import NormalMemory
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.score import AnomalyScore

RANGE = (0.3, 0.8)
FEW: dict[str, Any] = {
    "corruptions": ["rotation", "rician_noise"],
    "severities": [2, 5],
    "device": "cpu",
    "progress": False,
}


def make_model(
    path: Path,
    *,
    modality: str | None = "brain_mri",
    slice_range: tuple[float, float] = RANGE,
    thresholds: tuple[float, float] | None = (1.03, 1.0343),
    seed: int = 11,
    method: Mapping[str, Any] | None = None,
) -> Path:
    """A small model of random weights, whose thresholds some normals exceed.

    `method` has options of its training, e.g. ``field_of_view``.
    """
    encoder = empty_encoder("test_efficientnet", grid=7, seed=seed)
    detector = small_detector(encoder, rounds=4, standardize_features=True, seed=12)
    detector.heat_scale.fill_(35.0)
    calibration = {}
    if thresholds is not None:
        calibration = Calibration(1.0, 0.005, *thresholds, 0.05, 10, 5, 3, 3).to_dict()
    training = {"slice_range": list(slice_range), **({"modality": modality} if modality else {})}
    training |= {"method": dict(method)} if method else {}
    save_package(path, detector, calibration=calibration, provenance={"training": training})
    return path


def make_memory_model(path: Path) -> Path:
    """A model without head, of slices between their neighbours, cropped to the foreground."""
    encoder = empty_encoder("test_efficientnet", grid=7, seed=11)
    channels = encoder.out_channels
    tokens = torch.randn(20, channels, generator=torch.Generator().manual_seed(5))
    memory = NormalMemory.of_tokens(
        torch.nn.functional.normalize(tokens),
        mean=torch.zeros(channels),
        std=torch.ones(channels),
        distance="cosine",
        groups=(channels,),
        origin=torch.zeros(20, 3, dtype=torch.int32),
    )
    score = AnomalyScore(sources={"memory-cosine": 1.0}, symmetry=0.4, image_score="hottest")
    detector = MCMIADDetector(encoder, None, score, {"cosine": memory}).eval()
    method = {"context": 3, "field_of_view": "foreground"}
    training = {"slice_range": list(RANGE), "modality": "brain_mri", "method": method}
    calibration = Calibration(0.5, 0.005, 1.0, 1.0, 0.05, 10, 5, 3, 3).to_dict()
    detector.heat_scale.fill_(0.5)
    save_package(path, detector, calibration=calibration, provenance={"training": training})
    return path


def rows_of(report: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["corruption"], row["severity"]): row for row in report["rows"]}


def require_figures_of_an_evaluation(
    straight: tuple[Path, dict[str, Any]], model: Path, cohort: Path, tmp_path: Path
) -> None:
    """Compare the condition without corruption with an evaluation of the model in a bundle."""
    root = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    shutil.copy(model, root / "models" / "model.pt")
    overrides = {
        "dataset_dir": str(cohort / "datalist.json"),
        "output_dir": str(tmp_path / "eval"),
        "progress": False,
        "device": "cpu",
    }
    open_workflow(root, ("train", "evaluate"), overrides).run()
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"]
    clean = straight[1]["rows"][0]
    assert (clean["corruption"], clean["severity"]) == ("clean", 0)
    for name in ("volume_auroc", "slice_auroc"):
        assert clean[name] == metrics[name], name
    # pixel histograms are kept for every study, in coarser bins than those of an evaluation
    assert clean["pixel_auroc"] == pytest.approx(metrics["pixel_auroc"], abs=5e-4)
    expected = list(csv.DictReader((tmp_path / "eval" / "studies.csv").open()))
    found = list(csv.DictReader((straight[0] / "studies.csv").open()))
    for column in ("case", "slices", "anomalous_slices"):
        assert [row[column] for row in found] == [row[column] for row in expected]
    scores = [[float(row["volume_score"]) for row in rows] for rows in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)  # a bit of float32
