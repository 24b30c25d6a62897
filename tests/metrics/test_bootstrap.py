from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mcmiad_monai.metrics.bootstrap import bootstrap_auroc, bootstrap_interval
from mcmiad_monai.metrics.curves import auroc
from mcmiad_monai.metrics.pixels import PatientPixels


def cohort(
    patients: int, *, seed: int, per_patient: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores whose level differs between patients, labels of patients, and patients."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), per_patient)
    labels = (np.arange(patients) % 2)[groups]
    level = rng.normal(size=patients)[groups]
    return labels + level + 0.2 * rng.normal(size=groups.size), labels, groups


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    # the AUROC of normals against normals shifted by 1 / sd: Φ(1 / (√2 · √1.04))
    truth = 0.5 * (1 + math.erf(1 / (math.sqrt(2) * math.sqrt(1.04)) / math.sqrt(2)))
    hits = []
    for seed in range(60):
        scores, labels, groups = cohort(60, seed=seed)
        found = bootstrap_auroc(scores, labels, groups.tolist(), draws=60, level=0.9)
        hits.append(found.low <= truth <= found.high)
    assert 0.75 <= np.mean(hits) <= 0.99


def test_patients_and_not_images_are_resampled() -> None:
    scores, labels, groups = cohort(20, seed=0, per_patient=20)
    by_patient = bootstrap_auroc(scores, labels, groups.tolist(), draws=200)
    by_image = bootstrap_auroc(scores, labels, list(range(len(scores))), draws=200)
    assert by_patient.high - by_patient.low > 2 * (by_image.high - by_image.low)
    assert (by_patient.patients, by_image.patients) == (20, 400)
    assert by_patient.value == by_image.value == auroc(scores, labels)


def test_mean_of_draws_is_the_classical_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=200)
    found = bootstrap_interval(lambda rows: float(values[rows].mean()), list(range(200)))
    expected = 1.96 * values.std() / math.sqrt(200)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.1)


def test_fast_interval_of_the_auroc_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, groups = cohort(9, seed=2)
    scores, names = scores.round(1), groups.tolist()  # with ties
    plain = bootstrap_interval(lambda rows: auroc(scores[rows], labels[rows]), names, draws=200)
    fast = bootstrap_auroc(scores, labels, names, draws=200)
    assert fast.to_dict() == pytest.approx(plain.to_dict(), abs=1e-12)
    assert fast.undefined > 0
    monkeypatch.setattr("mcmiad_monai.metrics.bootstrap._WEIGHTS", 1)
    assert bootstrap_auroc(scores, labels, names, draws=200) == fast


def test_same_seed_same_interval() -> None:
    scores, labels, groups = cohort(12, seed=1)
    first, second, other = (
        bootstrap_auroc(scores, labels, groups.tolist(), draws=50, seed=s) for s in (0, 0, 1)
    )
    assert first == second
    assert first != other


def test_undefined_draws_are_left_out_and_counted() -> None:
    scores, labels = np.array([1.0, 2.0]), np.array([0, 1])
    found = bootstrap_auroc(scores, labels, ["a", "b"], draws=400)
    assert (found.low, found.high) == (1, 1)
    assert 140 < found.undefined < 260  # half of the draws hold one patient only


def test_undefined_everywhere_is_undefined() -> None:
    found = bootstrap_auroc(np.ones(3), np.zeros(3), ["a", "b", "c"], draws=10)
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["value"] is None


def test_pixel_interval_is_that_of_resampled_pixels() -> None:
    rng = np.random.default_rng(0)
    patients, size = 15, 400
    labels = rng.random((patients, size)) < 0.2
    level = rng.normal(size=(patients, 1))
    scores = np.exp(rng.normal(size=(patients, size)) + labels + level)
    store = PatientPixels()
    for k in range(patients):
        for half in (slice(0, 150), slice(150, None)):
            store.update(k, torch.from_numpy(scores[k, half]), torch.from_numpy(labels[k, half]))
    found = store.auroc_interval(draws=300)

    groups = np.repeat(np.arange(patients), size)
    flat = bootstrap_auroc(scores.ravel(), labels.ravel(), groups.tolist(), draws=100)
    assert found.value == pytest.approx(flat.value, abs=1e-3)
    assert found.low == pytest.approx(flat.low, abs=0.02)
    assert found.high == pytest.approx(flat.high, abs=0.02)
    assert found.patients == patients


def test_memory_of_the_pixels_grows_with_the_patients_alone() -> None:
    def held(patients: int, updates: int) -> int:
        store = PatientPixels()
        for k in range(updates):
            store.update(k % patients, torch.rand(50), torch.rand(50) > 0.5)
        return sum(pair.nbytes for pair in vars(store)["_pairs"].values())

    assert held(2, 2) == held(2, 20) == 2 * held(1, 20)
    assert held(1, 1) < 21_000


def test_what_cannot_be_resampled_is_refused() -> None:
    pair = np.ones(2), np.array([0, 1])
    refused: list[tuple[str, Callable[[], object]]] = [
        ("0 patients", PatientPixels().auroc_interval),
        ("0 patients", lambda: bootstrap_auroc(np.ones(0), np.ones(0), [])),
        ("0 patients", lambda: bootstrap_interval(lambda _rows: 0.0, [])),
        ("level", lambda: bootstrap_auroc(*pair, ["a", "b"], level=0.0)),
        ("level", lambda: bootstrap_auroc(*pair, ["a", "b"], level=1.0)),
        ("2 scores, 2 labels and 3 patients", lambda: bootstrap_auroc(*pair, ["a", "b", "c"])),
        ("differ in shape", lambda: PatientPixels().update("a", torch.rand(2, 3), torch.zeros(6))),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()
