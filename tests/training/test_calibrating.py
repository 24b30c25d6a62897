"""Thresholds from drawn normals: what is promised of new ones, with an odd one and without."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from heat_of_features import GRID, SIZE, HeatOfFeatures
from kept_features import kept_features

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.data.feature_store import SliceRecord
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.training.calibrating import (
    CalibrationError,
    NormalHeat,
    calibrate,
    normal_heat,
    thresholds,
)

RATE = 0.01
#: Heat of an odd study, in heats of an ordinary one.
ODD = 5.0


def calibrated(dataset: FeatureDataset, **options: Any) -> tuple[Calibration, Any]:
    detector: Any = HeatOfFeatures()
    found = calibrate(detector, dataset, pixel_false_positive_rate=RATE, **options)
    return found, detector


def levels(rng: np.random.Generator, count: int) -> np.ndarray:
    """Heat of patients, as different as those of real FLAIR."""
    return np.exp(0.2 * rng.normal(size=count))


def heat_of(patients: np.ndarray, slices: int = 3) -> NormalHeat:
    """Patients whose pixels are exponential with these means, and one study each."""
    quantiles = {f"p{i}": float(level) * math.log(1 / RATE) for i, level in enumerate(patients)}
    scores = {f"p{i}": [float(level)] * slices for i, level in enumerate(patients)}
    return NormalHeat(quantiles, quantiles, scores, {name: name for name in quantiles}, 1000)


def share_above(threshold: float, patients: np.ndarray) -> np.ndarray:
    """Of the pixels of such patients."""
    return np.exp(-threshold / patients)


def pooled_threshold(patients: np.ndarray) -> float:
    """Exceeded by the chosen share of the pixels of all patients together."""
    low, high = 0.0, 100.0
    for _ in range(50):
        middle = (low + high) / 2
        above = share_above(middle, patients).mean() > RATE
        low, high = (middle, high) if above else (low, middle)
    return high


@pytest.mark.parametrize(
    ("count", "odd"),
    [(1, False), (2, False), (8, False), (9, False), (8, True), (9, True), (20, True)],
)
def test_half_of_new_patients_keep_the_pixel_rate(count: int, odd: bool) -> None:
    rng, draws, fresh = np.random.default_rng(count), 500, 20
    kept = []
    for _ in range(draws):
        patients = levels(rng, count)
        patients[0] *= ODD if odd else 1
        threshold = thresholds(heat_of(patients), RATE).pixel_threshold
        kept.append(np.mean(share_above(threshold, levels(rng, fresh)) <= RATE))
    four_sigma = 4 * np.std(kept) / math.sqrt(draws)
    # at least half, and not many more: that would be a threshold which is needlessly high
    assert np.mean(kept) >= 0.5 - four_sigma
    assert np.mean(kept) <= 0.5 + (1 + odd) / (count + 1) + four_sigma


@pytest.mark.parametrize("odd", [False, True])
def test_slices_and_studies_of_new_patients_keep_their_rate(odd: bool) -> None:
    rng, draws, alpha, count = np.random.default_rng(3), 600, 0.1, 29
    above = []
    for _ in range(draws):
        patients = levels(rng, count)
        patients[0] *= ODD if odd else 1
        found = thresholds(heat_of(patients), RATE, alpha)
        scores = levels(rng, 1) / found.pixel_threshold
        above.append([*(scores > found.slice_threshold), *(scores > found.volume_threshold)])
    four_sigma = 4 * math.sqrt(alpha * (1 - alpha) / draws)
    assert np.all(np.mean(above, 0) <= alpha + four_sigma)
    assert np.all(np.mean(above, 0) >= alpha - (1 + odd) / (count + 1) - four_sigma)


@pytest.mark.parametrize("count", [8, 20])
def test_an_odd_study_hardly_moves_the_pixel_threshold(count: int) -> None:
    rng = np.random.default_rng(count)
    moved, moved_pooled = [], []
    for _ in range(100):
        patients = levels(rng, count)
        with_odd = np.append(patients[1:], ODD)
        before, after = (thresholds(heat_of(p), RATE).pixel_threshold for p in (patients, with_odd))
        moved.append(abs(after / before - 1))
        moved_pooled.append(pooled_threshold(with_odd) / pooled_threshold(patients) - 1)
    assert np.median(moved) < 0.1
    assert np.quantile(moved, 0.95) < (0.25 if count < 20 else 0.1)
    assert np.median(moved_pooled) > 0.5  # of all pixels together: the odd study decides


@pytest.mark.parametrize("count", [3, 8, 21])
def test_interval_holds_the_threshold_of_many_patients(count: int) -> None:
    rng, draws = np.random.default_rng(count), 500
    target = math.log(1 / RATE)  # the median patient has level 1
    found = [thresholds(heat_of(levels(rng, count)), RATE) for _ in range(draws)]
    inside = [
        c.pixel_interval[0] <= target <= c.pixel_interval[1] for c in found if c.pixel_interval
    ]
    confidence = found[0].pixel_confidence
    assert len(inside) == draws
    assert confidence >= 0.95 if count >= 6 else confidence == 0.75
    assert np.mean(inside) == pytest.approx(confidence, abs=4 * math.sqrt(0.19 / draws))


def drawn(
    patients: int, *, odd: bool = False, studies: int = 1, slices: int = 3, zeros: float = 0.0
) -> FeatureDataset:
    """Slices whose heat is exponential, of patients as different as real ones, interleaved."""
    rng = np.random.default_rng(patients)
    level = levels(rng, patients)
    level[-1] *= ODD if odd else 1
    heat = rng.exponential(size=(studies, slices, patients, 1, GRID, GRID))
    heat *= level[:, None, None, None] * (rng.random(heat.shape) >= zeros)
    records = [
        SliceRecord(f"p{p}s{s}", i, False, f"p{p}", "brain_mri")
        for s in range(studies)
        for i in range(slices)
        for p in range(patients)
    ]
    features = heat.reshape(-1, 1, GRID, GRID)
    return kept_features(features, records=records, size=SIZE)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_heat_is_that_of_each_study_and_patient_in_any_order_of_slices(batch_size: int) -> None:
    dataset, detector = drawn(5, studies=2), HeatOfFeatures()
    rows = list(range(len(dataset)))
    found = normal_heat(detector, dataset, rows, rate=RATE, batch_size=batch_size)  # type: ignore[arg-type]
    heat = dataset.batch(rows)[:, 0].numpy()
    for kept, names in (
        (found.patients, [r.patient for r in dataset.records]),
        (found.studies, [r.case for r in dataset.records]),
    ):
        assert set(kept) == set(names)
        for name, value in kept.items():
            pixels = heat[[n == name for n in names]]
            expected = np.quantile(pixels, 1 - RATE, method="inverted_cdf")
            assert value == pytest.approx(expected, rel=2e-3)
    assert found.pixels == len(rows) * SIZE**2
    assert [len(scores) for scores in found.scores.values()] == [3] * 10


def test_median_heat_of_each_study_is_kept_in_units_of_the_threshold() -> None:
    dataset = drawn(6, zeros=0.3)
    found, _ = calibrated(dataset)
    heat = dataset.batch(range(len(dataset)))[:, 0].numpy()
    each = [heat[p::6] for p in range(6)]
    medians = [np.quantile(h[h > 0], 0.5, method="inverted_cdf") for h in each]
    expected = sorted(float(median) / found.pixel_threshold for median in medians)
    assert found.typical_heat == pytest.approx(expected, rel=2e-3)
    assert found.usual_heat is not None
    assert found.usual_heat[0] < np.median(expected) < found.usual_heat[1]
    assert Calibration.from_dict(found.to_dict()).usual_heat == found.usual_heat


def test_one_is_the_threshold_in_the_heatmaps_afterwards() -> None:
    dataset = drawn(9)
    found, detector = calibrated(dataset)
    assert float(detector.heat_scale) == pytest.approx(found.pixel_threshold)
    heat = detector.heatmap_from_features(dataset.batch(range(len(dataset))), None)
    shares = [float((heat[p::9] > 1).float().mean()) for p in range(9)]
    assert sum(share <= RATE for share in shares) == 5  # the median patient and those below


def test_heat_that_is_0_in_most_pixels_leaves_the_threshold_above_0() -> None:
    found, _ = calibrated(drawn(9, zeros=0.8))
    assert found.pixel_threshold > 0.1


def test_studies_without_heat_are_refused_and_told_what_to_do() -> None:
    with pytest.raises(
        CalibrationError, match=r"9 normal patients .* smaller pixel_false_positive"
    ):
        calibrated(drawn(9, zeros=1.0))


def test_odd_held_out_study_is_named_and_still_counts(caplog: pytest.LogCaptureFixture) -> None:
    odd: dict[str, str] = {}
    found, _ = calibrated(drawn(20, odd=True), odd=odd)
    assert list(odd) == ["p19s0"]
    assert "odd healthy study among the held-out ones: p19s0 (heat" in caplog.text
    plain, _ = calibrated(drawn(20), odd=(none := {}))
    assert not none
    assert found.normal_patients == plain.normal_patients == 20
    assert found.pixel_threshold == pytest.approx(plain.pixel_threshold, rel=0.1)
    assert found.volume_scores[-1] > 3 * plain.volume_scores[-1]
