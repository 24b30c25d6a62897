"""A study that is unlike the held-out normals is scored with a warning, a lesion alone is not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.inference.outputs import study_scores, typical_heat
from mcmiad_monai.metrics.ranges import usual_range

KNOWN = Calibration(
    1.0, 0.005, 2.0, 2.0, 0.05, 1000, 40, 7, 7, typical_heat=(0.2, 0.24, 0.25, 0.25, 0.26, 0.3, 0.9)
)


def study(level: float, *, lesion: float = 0.0) -> MetaTensor:
    """Heat of a level with noise in half of the volume, and a lesion in a share of that."""
    rng = np.random.default_rng(0)
    heat = np.zeros((20, 20, 8))
    heat[5:15] = level * np.exp(0.3 * rng.normal(size=(10, 20, 8)))
    heat[5 : 5 + round(10 * lesion)] = 6.0
    meta = {"case": "a", "space": "RAS"}
    return MetaTensor(torch.as_tensor(heat, dtype=torch.float32)[None], meta=meta)


def scored(level: float, known: Calibration | None = KNOWN, *, lesion: float = 0.0) -> Any:
    scores = torch.full((8,), level)
    return study_scores(study(level, lesion=lesion), scores, slice_axis=2, calibration=known)


@pytest.mark.parametrize(
    ("level", "far"), [(0.25, False), (0.2, False), (0.35, False), (0.6, True), (0.1, True)]
)
def test_study_far_from_held_out_normals_is_scored_with_a_warning(level: float, far: bool) -> None:
    found = scored(level)
    assert found["warnings"] == (["out_of_distribution"] if far else [])
    assert found["volume_score"] == pytest.approx(level)
    assert found["anomalous"] is False
    assert found["typical_heat"] == pytest.approx(level, rel=0.05)
    low, high = found["usual_heat"]
    assert 0.1 < low < 0.2
    assert 0.35 < high < 0.5  # the odd one among the normals, 0.9, does not move it
    json.dumps(found, allow_nan=False)


def test_lesion_that_fills_a_third_is_no_reason_for_it() -> None:
    assert scored(0.25, lesion=0.3)["warnings"] == []


def test_median_is_of_the_heat_alone() -> None:
    heat = torch.tensor([0.0, 0, 0, 0, 0, 1, 2, 3]).reshape(1, 2, 2, 2)
    assert typical_heat(heat) == 2
    assert typical_heat(torch.zeros(1, 2, 2, 2)) is None


@pytest.mark.parametrize("known", [None, replace(KNOWN, typical_heat=(0.2, 0.25, 0.25, 0.3))])
def test_nothing_is_said_without_enough_held_out_studies(known: Calibration | None) -> None:
    found = scored(9.0, known)
    assert (found["usual_heat"], found["warnings"]) == (None, [])


@pytest.mark.parametrize("held_out", [6, 8, 20, 100])
def test_one_healthy_study_in_a_hundred_is_warned_of(held_out: int) -> None:
    rng = np.random.default_rng(0)
    called = []
    for _ in range(2000):
        drawn = np.exp(0.25 * rng.normal(size=held_out + 1))
        low, high = usual_range(drawn[1:].tolist()) or (math.nan, math.nan)
        called.append(not low <= drawn[0] <= high)
    assert 0.005 < np.mean(called) < 0.025


def test_heat_of_another_contrast_is_warned_of_although_it_is_not_a_multiple() -> None:
    # as measured on real FLAIR of 8 held-out patients: T2-weighted images have 0.87
    flair = (0.549, 0.572, 0.596, 0.611, 0.618, 0.661, 0.668, 0.681)
    found = scored(0.87, replace(KNOWN, typical_heat=flair))
    assert found["warnings"] == ["out_of_distribution"]
    assert scored(0.74, replace(KNOWN, typical_heat=flair))["warnings"] == []


def test_held_out_studies_that_are_alike_by_chance_leave_room() -> None:
    low, high = usual_range([0.5] * 8) or (math.nan, math.nan)
    assert low < 0.45
    assert high > 0.55
