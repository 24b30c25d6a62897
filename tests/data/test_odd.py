from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from kept_features import kept_features

from mcmiad_monai.data.feature_store import SliceRecord
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.odd import (
    BORDER,
    FEATURES,
    FIELD_OF_VIEW,
    HEAT,
    odd_studies,
    odd_training_studies,
    odd_values,
)

SIZE, GRID, SLICES, CHANNELS = 16, 4, 3, 64


def studies(
    count: int,
    *,
    brighter: Sequence[int] = (),
    smaller: Sequence[int] = (),
    cut: Sequence[int] = (),
    modality: str = "brain_mri",
) -> FeatureDataset:
    """Studies of some slices; some have other features, a small foreground, or one that is cut."""
    rng = np.random.default_rng(count)
    features = rng.normal(2, 0.3, (count, SLICES, CHANNELS, GRID, GRID))
    features += rng.normal(0, 0.3, (count, 1, CHANNELS, 1, 1))
    features[list(brighter)] *= 3
    foreground = np.zeros((count, SLICES, 1, SIZE, SIZE), bool)
    foreground[..., 2:-2, 2:-2] = True
    for study in smaller:
        foreground[study, ..., 2:-2, 8:] = False
    for study in cut:
        foreground[study] = np.roll(foreground[study], 4, -1)
    records = [
        SliceRecord(f"{modality}{case}", i, False, f"p{case}", modality)
        for case in range(count)
        for i in range(SLICES)
    ]
    return kept_features(
        features.reshape(-1, CHANNELS, GRID, GRID),
        records=records,
        foreground=torch.from_numpy(foreground.reshape(-1, 1, SIZE, SIZE)),
        size=SIZE,
    )


def test_ordinary_studies_are_not_odd() -> None:
    assert not odd_training_studies(studies(30))


@pytest.mark.parametrize("count", [5, 8, 30])
def test_odd_studies_are_named_with_measure_and_reason(count: int) -> None:
    for options, measure in (
        ({"brighter": [1]}, FEATURES),
        ({"smaller": [1]}, FIELD_OF_VIEW),
        ({"cut": [1]}, BORDER),
    ):
        found = odd_training_studies(studies(count, **options))
        assert list(found) == ["brain_mri1"]
        assert measure in found["brain_mri1"]
        assert f"the median of {count} studies" in found["brain_mri1"]


def test_heat_under_a_model_is_compared_where_there_is_one() -> None:
    data = studies(8)
    heat = {f"brain_mri{i}": 0.2 + 0.02 * i for i in range(8)} | {"brain_mri3": 1.1}
    rows = range(len(data))
    assert not odd_studies(data, rows)
    found = odd_studies(data, rows, heat)
    assert list(found) == ["brain_mri3"]
    assert found["brain_mri3"].startswith(f"{HEAT} is 1.1; the median of 8 studies is 0.29,")


def test_modalities_are_compared_each_within_itself() -> None:
    many, few = studies(20), studies(6, brighter=range(6), modality="liver_ct")
    both = FeatureDataset.join({"brain": many, "liver": few})
    assert not odd_training_studies(both)


def test_few_studies_are_not_judged_and_rounding_makes_none_odd() -> None:
    assert not odd_values({"a": 1.0, "b": 1.0, "c": 1.0, "d": 100.0}, HEAT)
    nearly = {name: 1 + 1e-6 * i for i, name in enumerate("abcdef")}
    assert not odd_values(nearly | {"g": 1.01}, HEAT)
    assert list(odd_values(nearly | {"g": 2.0}, HEAT)) == ["g"]
    assert not odd_values(dict.fromkeys("abcdef", 0.0), HEAT)


def test_rate_at_which_ordinary_studies_are_called_odd() -> None:
    rng = np.random.default_rng(0)
    for count, most in ((5, 0.08), (50, 0.02)):
        drawn = np.exp(0.25 * rng.normal(size=(1000, count)))
        called = [bool(odd_values(dict(enumerate(d)), HEAT)) for d in drawn.tolist()]  # type: ignore[arg-type]
        assert np.mean(called) < most


def test_several_odd_studies_do_not_hide_each_other() -> None:
    found = odd_training_studies(studies(12, brighter=[0, 7]))
    assert set(found) == {"brain_mri0", "brain_mri7"}
