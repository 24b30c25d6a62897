from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.data.features import FeatureDataset, TrainingDataError
from mcmiad_monai.networks.encoder import FrozenEncoder, build_encoder
from mcmiad_monai.training.synthetic import (
    KINDS,
    RADII,
    Kind,
    add_anomaly,
    generator,
    kinds_of,
    synthetic_dataset,
)

SIZE = 96
OPTIONS: dict[str, Any] = {"modality": "brain_mri", "size": 64}


def tissue(seed: int, channels: int = 1) -> Tensor:
    """A textured disc on background, (C, SIZE, SIZE)."""
    noise = torch.rand(channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    return (0.3 + 0.3 * noise) * (x.square() + y.square() < 0.7)


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return build_encoder("test_efficientnet.r160_in1k", weights="random")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_anomaly_changes_the_image_inside_its_mask_alone(kind: Kind, channels: int) -> None:
    for seed in range(3):
        image = tissue(seed, channels)
        before = image.clone()
        rng = generator(seed)
        changed, mask = add_anomaly(image, kind=kind, rng=rng, donor=tissue(100, channels))
        assert torch.equal(image, before)
        assert mask.shape == (1, SIZE, SIZE)
        inside = image[channels // 2] > 0
        assert mask.any()
        assert not (mask[0] & ~inside).any()
        assert torch.equal(changed > 0, image > 0)  # the foreground stays what it was
        assert changed.max() <= 1
        differs = (changed - image).abs().amax(0) > 0
        assert not (differs & ~mask[0]).any()
        assert differs.sum() > 0.5 * mask.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_anomalies_differ_in_size_between_the_limits(kind: Kind) -> None:
    image = tissue(0)
    width = 2 * 0.7**0.5 * SIZE / 2
    areas = [int(add_anomaly(image, kind=kind, rng=generator(seed))[1].sum()) for seed in range(25)]
    radii = np.sqrt(np.array(areas) / np.pi) / width
    assert radii.min() < 2 * RADII[0]
    assert 0.6 * RADII[1] < radii.max() < 1.6 * RADII[1]


@pytest.mark.parametrize("kind", KINDS)
def test_of_three_slices_the_middle_one_has_the_anomaly_and_the_others_half_of_it(
    kind: Kind,
) -> None:
    middle = tissue(1)
    image, donor = middle.expand(3, -1, -1).contiguous(), tissue(2).expand(3, -1, -1).contiguous()
    changed, mask = add_anomaly(image, kind=kind, rng=generator(5), donor=donor, context=3)
    alone, same = add_anomaly(middle, kind=kind, rng=generator(5), donor=donor[:1])
    assert torch.equal(mask, same)
    # limits are taken of all three slices
    torch.testing.assert_close(changed[1], alone[0], rtol=0, atol=1e-3)
    for neighbour in (0, 2):
        torch.testing.assert_close(2 * changed[neighbour], changed[1] + middle[0])


def test_bright_is_brighter_and_dark_is_darker() -> None:
    image = tissue(3)
    for kind, sign in (("bright", 1), ("dark", -1)):
        changed, mask = add_anomaly(image, kind=kind, rng=generator(1))  # type: ignore[arg-type]
        assert (sign * (changed - image))[mask].mean() > 0.01
        assert (sign * (changed - image)).min() >= 0


def dataset(cases: list[Any], encoder: FrozenEncoder, **options: Any) -> FeatureDataset:
    return synthetic_dataset(cases, encoder, **{**OPTIONS, **options})


def cases_of(cohort: Path) -> list[dict[str, Any]]:
    return list(find_cases(cohort / "datalist.json", "val"))


def test_the_same_seed_gives_the_same_in_whatever_order(
    cohort: Path, encoder: FrozenEncoder
) -> None:
    cases = cases_of(cohort)
    first = dataset(cases, encoder, limit=6, seed=2)
    again = dataset(cases[::-1], encoder, limit=6, seed=2, batch_size=1)
    other = dataset(cases, encoder, limit=6, seed=3)
    rows = list(range(len(first)))
    assert first.records == again.records
    assert torch.equal(first.lesion(rows), again.lesion(rows))
    torch.testing.assert_close(first.batch(rows), again.batch(rows), rtol=1e-2, atol=1e-2)
    assert not torch.equal(first.lesion(rows), other.lesion(list(range(len(other)))[: len(rows)]))


def test_normal_slices_come_evenly_from_all_patients_each_beside_its_anomaly(
    cohort: Path, encoder: FrozenEncoder
) -> None:
    cases = cases_of(cohort)
    found = dataset(cases, encoder, limit=8)
    normal = [i for i, r in enumerate(found.records) if not r.anomalous]
    counts = {p: sum(found.records[i].patient == p for i in normal) for p in
              {found.records[i].patient for i in normal}}  # fmt: skip
    assert len(normal) == 8
    assert set(counts.values()) == {2}
    assert len(found) == 16
    for i in normal:
        plain, changed = found.records[i], found.records[i + 1]
        assert (changed.case, changed.index, changed.patient) == (
            plain.case,
            plain.index,
            plain.patient,
        )
        assert changed.anomalous
        assert not found.lesion([i]).any()
        lesion = found.lesion([i + 1])
        assert lesion.any()
        assert not (lesion & ~found.foreground([i])).any()
        assert not torch.equal(found.batch([i]), found.batch([i + 1]))


def test_slices_between_their_neighbours_have_the_same_anomalies(
    cohort: Path, encoder: FrozenEncoder
) -> None:
    alone, between = (dataset(cases_of(cohort), encoder, limit=4, context=c) for c in (1, 3))
    rows = list(range(len(alone)))
    assert alone.records == between.records
    assert torch.equal(alone.foreground(rows), between.foreground(rows))
    assert torch.equal(alone.lesion([1]), between.lesion([1]))  # a bright blob, as seeded
    assert not torch.equal(alone.batch(rows), between.batch(rows))


def test_few_slices_have_several_anomalies_each(cohort: Path, encoder: FrozenEncoder) -> None:
    few = dataset(cases_of(cohort), encoder, limit=9, slice_range=(0.5, 0.6))  # one of each study
    normal = [i for i, r in enumerate(few.records) if not r.anomalous]
    draws = 9 // len(normal)
    assert draws > 1
    assert len(few) == len(normal) * (1 + draws)
    assert not torch.equal(few.lesion([1]), few.lesion([2]))


def test_without_normal_slices_the_error_says_what_to_do(
    cohort: Path, encoder: FrozenEncoder
) -> None:
    anomalous = [{**case, "label": None, "anomalous": True} for case in cases_of(cohort)]
    with pytest.raises(TrainingDataError, match="Name the score, or give more normal studies"):
        dataset(anomalous, encoder)


def test_where_lesions_are_bright_anomalies_are() -> None:
    assert kinds_of("brain_mri") == ("bright",)
    assert kinds_of("liver_ct") == KINDS
