from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from mcmiad_monai.calibration import Calibration, conformal_threshold

THRESHOLDS = Calibration(
    pixel_threshold=12.3456,
    pixel_false_positive_rate=0.005,
    slice_threshold=1.25,
    volume_threshold=2.5,
    false_positive_rate=0.05,
    normal_pixels=123456,
    normal_slices=80,
    normal_volumes=20,
)


@pytest.mark.parametrize(
    ("count", "alpha", "rank"),
    [
        (19, 0.05, 19),  # 20 · 0.95 is a whole number: the largest of 19
        (20, 0.05, 20),
        (39, 0.05, 38),
        (99, 0.05, 95),
        (99, 0.1, 90),
        (9, 0.1, 9),
        (3, 0.5, 2),
        (999, 0.001, 999),
    ],
)
def test_threshold_is_the_conformal_order_statistic_by_hand(
    count: int, alpha: float, rank: int
) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert conformal_threshold(scores, alpha) == rank


@pytest.mark.parametrize("percent", [1, 5, 7, 10, 25, 30, 90])
def test_rank_agrees_with_exact_arithmetic(percent: int) -> None:
    for count in range(1, 200):
        rank = math.ceil((count + 1) * (1 - Fraction(percent, 100)))
        expected = rank if rank <= count else math.inf
        found = conformal_threshold(np.arange(1, count + 1), percent / 100)
        assert found == expected, count


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1)])
def test_threshold_is_infinite_for_too_few_normals(alpha: float, needed: int) -> None:
    assert conformal_threshold(np.ones(needed - 1), alpha) == math.inf
    assert conformal_threshold(np.ones(needed), alpha) == 1


def test_threshold_of_nothing_is_infinite() -> None:
    assert conformal_threshold([], 0.05) == math.inf


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
        "pixel threshold 12.35 = 1.0 in the heatmap (0.50% of 123456 normal pixels); "
        "slice threshold 1.250 (80 normals); volume threshold 2.500 (20 normals); "
        "false-positive rate 5%"
    )


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99)])
def test_summary_names_the_normals_that_a_threshold_needs(rate: float, needed: int) -> None:
    few = replace(THRESHOLDS, volume_threshold=math.inf, normal_volumes=4, false_positive_rate=rate)
    told = f"volume threshold not set (4 normals, at least {needed} are needed)"
    assert told in few.summary()
    assert "slice threshold 1.250" in few.summary()
    # and the number it names is enough, and one less is not
    assert math.isfinite(conformal_threshold(np.ones(needed), rate))
    assert math.isinf(conformal_threshold(np.ones(needed - 1), rate))


def test_named_number_of_normals_is_right_for_every_rate() -> None:
    for rate in (k / 1000 for k in range(1, 500)):
        few = replace(THRESHOLDS, volume_threshold=math.inf, false_positive_rate=rate)
        needed = int(few.summary().split("at least ")[1].split()[0])
        assert math.isfinite(conformal_threshold(np.ones(needed), rate)), rate
        assert math.isinf(conformal_threshold(np.ones(needed - 1), rate)), rate
