from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mcmiad_monai.calibration import Calibration, conformal_threshold
from mcmiad_monai.data.features import FeatureDataset, prepare_encoder
from mcmiad_monai.data.volumes import find_cases
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.packaging import CalibrationError, calibrate
from mcmiad_monai.scoring import AnomalyScore


def test_threshold_by_hand() -> None:
    scores = np.arange(1, 20)  # 19 normals; ⌈20 · 0.95⌉ = 19th smallest
    assert conformal_threshold(scores, 0.05) == 19
    assert conformal_threshold(scores, 0.5) == 10
    assert conformal_threshold(scores[::-1].copy(), 0.1) == 18


def test_too_few_normals_set_no_threshold() -> None:
    assert math.isinf(conformal_threshold(np.arange(18), 0.05))
    assert math.isinf(conformal_threshold([], 0.05))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0])
def test_rate_is_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal_threshold([1.0], alpha)


def test_new_normals_exceed_the_threshold_at_the_promised_rate() -> None:
    rng = np.random.default_rng(0)
    alarms = [
        rng.exponential() > conformal_threshold(rng.exponential(size=40), 0.1) for _ in range(4000)
    ]
    # ⌈41 · 0.9⌉ = 37 of 41 ranks are below: the exact rate is 4/41
    assert np.mean(alarms) == pytest.approx(4 / 41, abs=0.015)


def calibration(**changes: Any) -> Calibration:
    values: dict[str, Any] = {
        "pixel_threshold": 2.5,
        "pixel_false_positive_rate": 0.005,
        "slice_threshold": 1.2,
        "volume_threshold": math.inf,
        "false_positive_rate": 0.05,
        "normal_pixels": 1000,
        "normal_slices": 40,
        "normal_volumes": 4,
    }
    return Calibration(**{**values, **changes})


def test_calibration_survives_json() -> None:
    assert Calibration.from_dict(json.loads(json.dumps(calibration().to_dict()))) == calibration()


def test_summary_says_which_threshold_could_not_be_set() -> None:
    text = calibration().summary()
    assert "volume threshold not set (4 normals, at least 19 are needed)" in text
    assert "slice threshold 1.200 (40 normals)" in text


@pytest.fixture(scope="module")
def parts(cohort: Path) -> tuple[MCMIADDetector, list[Any]]:
    cases = list(find_cases(cohort / "datalist.json", "val"))
    encoder = prepare_encoder(
        cases, modality="brain_mri", name="test_efficientnet.r160_in1k", weights="random"
    )
    head = build_head(
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        prior=torch.eye(3, 8),
        dim=16,
        heads=4,
        hidden=16,
        rounds=1,
    )
    return MCMIADDetector(encoder, head, AnomalyScore()), cases


def test_heatmaps_are_in_units_of_the_rate(parts: tuple[MCMIADDetector, list[Any]]) -> None:
    detector, cases = parts
    dataset = FeatureDataset(cases, detector.encoder, modality="brain_mri", progress=False)
    result = calibrate(detector, dataset, pixel_false_positive_rate=0.02)
    normal = [i for i, r in enumerate(dataset.records) if not r.anomalous]
    with torch.no_grad():
        heat = detector.heatmap_from_features(dataset.batch(normal), (224, 224))
    inside = dataset.foreground(normal)
    assert float((heat[inside] > 1).double().mean()) == pytest.approx(0.02, abs=5e-4)
    assert result.normal_pixels == int(inside.sum())
    assert result.normal_slices == len(normal)
    scores = detector.score.slice_score(heat * inside, inside).numpy()
    assert result.slice_threshold == pytest.approx(conformal_threshold(scores, 0.05), rel=1e-4)


def test_calibration_needs_normal_slices(parts: tuple[MCMIADDetector, list[Any]]) -> None:
    detector, cases = parts
    dataset = FeatureDataset(cases, detector.encoder, modality="brain_mri", progress=False)
    dataset.records = [r for r in dataset.records if r.anomalous]
    with pytest.raises(CalibrationError, match="need normal slices"):
        calibrate(detector, dataset)
