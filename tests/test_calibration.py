from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from mcmiad_monai.calibration import (
    Calibration,
    conformal_threshold,
    kept_scores,
    median_interval,
    pixel_threshold_of,
)

THRESHOLDS = Calibration(
    pixel_threshold=12.3456,
    pixel_false_positive_rate=0.005,
    slice_threshold=1.25,
    volume_threshold=2.5,
    false_positive_rate=0.05,
    normal_pixels=123456,
    normal_slices=80,
    normal_volumes=20,
    normal_patients=20,
    pixel_interval=(11.1, 14.2),
    pixel_confidence=0.9586,
    slice_scores=(0.5, 0.75, 1.25),
    volume_scores=(2.5,),
)
#: What a model of version 0.1 keeps.
OLDER = {
    "pixel_threshold",
    "pixel_false_positive_rate",
    "slice_threshold",
    "volume_threshold",
    "false_positive_rate",
    "normal_pixels",
    "normal_slices",
    "normal_volumes",
    "normal_patients",
}


@pytest.mark.parametrize("percent", [1, 5, 7, 10, 25, 30, 50, 90])
def test_threshold_is_the_conformal_order_statistic_by_exact_arithmetic(percent: int) -> None:
    rng = np.random.default_rng(0)
    for count in range(200):
        rank = math.ceil((count + 1) * (1 - Fraction(percent, 100)))
        expected = rank if rank <= count else math.inf  # too few normals
        found = conformal_threshold(rng.permutation(np.arange(1.0, count + 1)), percent / 100)
        assert found == expected, count


@pytest.mark.parametrize("count", [19, 25, 60])
def test_new_normals_exceed_the_threshold_at_most_as_often_as_promised(count: int) -> None:
    alpha, trials = 0.05, 20_000
    rng = np.random.default_rng(count)
    normals = rng.lognormal(size=(trials, count + 1))
    exceeded = np.mean([row[-1] > conformal_threshold(row[:-1], alpha) for row in normals])
    four_sigma = 4 * math.sqrt(alpha * (1 - alpha) / trials)
    assert exceeded <= alpha + four_sigma
    # nor is it needlessly high: the rate is at least α − 1 / (n + 1)
    assert exceeded >= alpha - 1 / (count + 1) - four_sigma


def test_promise_holds_with_ties() -> None:
    alpha, trials, count = 0.1, 5000, 29
    normals = np.random.default_rng(1).integers(0, 6, size=(trials, count + 1))
    exceeded = np.mean([row[-1] > conformal_threshold(row[:-1], alpha) for row in normals])
    assert exceeded <= alpha


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0, math.nan])
def test_rate_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal_threshold([1.0] * 50, alpha)


@pytest.mark.parametrize(
    "calibration",
    [
        THRESHOLDS,
        replace(THRESHOLDS, pixel_interval=None, pixel_confidence=0.0),
        replace(THRESHOLDS, volume_threshold=math.inf),
        replace(THRESHOLDS, slice_threshold=math.inf, volume_threshold=math.inf),
    ],
)
def test_json_round_trip(calibration: Calibration) -> None:
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(text)) == calibration
    assert Calibration.from_dict(json.loads(str(calibration))) == calibration


def test_summary_tells_thresholds_rates_and_what_was_counted() -> None:
    assert THRESHOLDS.summary() == (
        "pixel threshold 12.35 = 1.0 in the heatmap (at least half of new normal patients have at "
        "most 0.50% of their pixels above it; 96% interval over 20 patients 11.1 to 14.2); "
        "slice threshold 1.250 (80 normals); volume threshold 2.500 (20 normals); "
        "false-positive rate 5% over 20 patients"
    )


def test_kept_scores_are_sorted_short_and_do_not_grow_with_the_cohort() -> None:
    assert kept_scores([3.0, 0.123456, 20.0]) == (0.1235, 3.0, 20.0)
    rng = np.random.default_rng(0)
    many = rng.lognormal(size=50_000)
    kept = np.array(kept_scores(many))
    assert len(kept) == 1000
    assert np.all(np.diff(kept) >= 0)
    for rate in (0.01, 0.05, 0.5):  # what a report reads from them is what all scores say
        assert np.mean(many > np.quantile(kept, 1 - rate)) == pytest.approx(rate, abs=1e-3)
    thresholds = replace(THRESHOLDS, slice_scores=tuple(kept), volume_scores=tuple(kept))
    assert len(json.dumps(thresholds.to_dict())) < 20_000


def test_thresholds_are_described_without_the_scores_where_people_read_them() -> None:
    short = THRESHOLDS.to_dict(scores=False)
    left_out = {"slice_scores", "volume_scores", "typical_heat"}
    assert set(THRESHOLDS.to_dict()) - set(short) == left_out
    assert Calibration.from_dict(short).slice_threshold == THRESHOLDS.slice_threshold


def test_summary_says_that_one_patient_tells_nothing_of_others() -> None:
    alone = replace(THRESHOLDS, normal_patients=1, pixel_interval=None, pixel_confidence=0.0)
    assert "how sure it is is not known from one patient" in alone.summary()


def test_model_of_an_older_version_loads_and_promises_what_it_was_calibrated_for() -> None:
    stored = {k: v for k, v in THRESHOLDS.to_dict().items() if k in OLDER}
    found = Calibration.from_dict(json.loads(json.dumps(stored)))
    assert found.slice_threshold == THRESHOLDS.slice_threshold
    assert "(0.50% of 123456 normal pixels)" in found.summary()


def test_pixel_threshold_is_the_median_of_patients_and_of_two_the_upper() -> None:
    assert pixel_threshold_of([3.0, 1.0, 2.0]) == 2.0
    assert pixel_threshold_of([4.0, 1.0, 2.0, 3.0]) == 3.0
    assert pixel_threshold_of([7.0]) == 7.0


def test_interval_of_the_median_by_exact_arithmetic() -> None:
    assert median_interval([1.0]) is None
    for count in [*range(2, 60), 501]:
        found = median_interval(np.arange(1.0, count + 1))
        assert found is not None
        (low, high), confidence = found
        rank = int(low)
        assert high == count + 1 - rank
        # the interval from the r-th smallest to the r-th largest misses the median with this chance
        missed = [
            Fraction(2 * sum(math.comb(count, k) for k in range(r)), 2**count)
            for r in (rank, rank + 1)
        ]
        assert confidence == pytest.approx(float(1 - missed[0]))
        assert missed[0] <= Fraction(1, 20) or rank == 1
        assert missed[1] > Fraction(1, 20)  # a narrower one would miss it too often


def test_summary_names_the_normals_that_a_threshold_needs() -> None:
    for rate in (k / 1000 for k in range(1, 500)):
        few = replace(THRESHOLDS, volume_threshold=math.inf, false_positive_rate=rate)
        needed = int(few.summary().split("patients, at least ")[1].split()[0])
        assert math.isfinite(conformal_threshold(np.ones(needed), rate)), rate
        assert math.isinf(conformal_threshold(np.ones(needed - 1), rate)), rate
    told = "volume threshold not set (20 normal patients, at least 2 are needed)"
    assert told in few.summary()
    assert "slice threshold 1.250" in few.summary()


def normal_patients(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Slice scores of patients who differ from each other more than their slices do."""
    sizes = rng.integers(1, 30, count)
    level = np.repeat(rng.normal(size=count), sizes)
    return np.exp(level + 0.3 * rng.normal(size=sizes.sum())), np.repeat(np.arange(count), sizes)


@pytest.mark.parametrize("count", [20, 60])
def test_slices_of_new_patients_exceed_the_threshold_at_most_as_often_as_promised(
    count: int,
) -> None:
    alpha, trials = 0.1, 3000
    rng = np.random.default_rng(count)
    grouped, pooled = [], []
    for _ in range(trials):
        scores, patients = normal_patients(rng, count)
        new, _ = normal_patients(rng, 1)
        threshold = conformal_threshold(scores, alpha, groups=patients.tolist())
        grouped.append(np.mean(new > threshold))
        pooled.append(np.mean(new > conformal_threshold(scores, alpha)))
    four_sigma = 4 * np.std(grouped) / math.sqrt(trials)
    assert np.mean(grouped) <= alpha + four_sigma
    assert np.mean(grouped) >= alpha - 2 / (count + 1) - four_sigma
    # what grouping is for: with few patients, slices taken for independent break the promise
    if count == 20:
        assert np.mean(pooled) > np.mean(grouped)


def test_groups_of_one_are_the_plain_threshold() -> None:
    scores = np.random.default_rng(0).normal(size=57)
    for alpha in (0.05, 0.1, 0.33):
        names = [f"p{i}" for i in range(57)]
        assert conformal_threshold(scores, alpha, groups=names) == conformal_threshold(
            scores, alpha
        )


def test_grouped_threshold_by_hand() -> None:
    # three patients of weight 1/4 each, the new one has the fourth; 1 − α = 1/2 is Σ F_k = 2:
    # at 3 patient a has all (1), b half (1/2), c half (1/2)
    scores, groups = [1, 2, 3, 9, 3, 8], ["a", "a", "b", "b", "c", "c"]
    assert conformal_threshold(scores, 0.5, groups=groups) == 3
    assert conformal_threshold(scores, 0.49, groups=groups) == 8
    assert conformal_threshold(scores, 0.24, groups=groups) == math.inf


def test_many_slices_of_few_patients_set_no_threshold() -> None:
    scores = np.arange(1000.0)
    assert conformal_threshold(scores, 0.05, groups=[i % 18 for i in range(1000)]) == math.inf
    assert math.isfinite(conformal_threshold(scores, 0.05, groups=[i % 19 for i in range(1000)]))


def test_threshold_needs_a_group_for_each_score() -> None:
    with pytest.raises(ValueError, match="3 scores have 2 groups"):
        conformal_threshold([1, 2, 3], 0.1, groups=["a", "b"])
