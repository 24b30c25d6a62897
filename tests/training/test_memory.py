"""Choosing the tokens of a memory: bounded, balanced, and of normal foreground alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kept_features import kept_features

from mcmiad_monai.data.feature_store import SliceRecord
from mcmiad_monai.data.features import FeatureDataset, TrainingDataError
from mcmiad_monai.training.memory import build_memory, cells_in_foreground, k_centre

GRID, SIZE = 4, 8


def slices(counts: dict[str, int], *, modality: str = "brain_mri") -> list[SliceRecord]:
    """Records of studies with so many slices each."""
    return [
        SliceRecord(case, k, False, case, modality) for case, n in counts.items() for k in range(n)
    ]


def dataset(
    records: list[SliceRecord], seed: int = 0, foreground: torch.Tensor | None = None
) -> FeatureDataset:
    """Features whose first channel is the number of the slice among all."""
    features = np.random.default_rng(seed).normal(size=(len(records), 5, GRID, GRID))
    features[:, 0] = np.arange(len(records))[:, None, None]
    return kept_features(features, records=records, foreground=foreground, size=SIZE)


def test_every_token_is_that_of_its_origin() -> None:
    data = dataset(slices({"a": 3, "b": 2}))
    built = build_memory(data, "l2", size=1000)
    memory = built.memory
    assert len(memory.tokens) == 5 * GRID * GRID
    rows = {(r.case, r.index): i for i, r in enumerate(data.records)}
    for token, (number, index, cell) in zip(memory.tokens, memory.origin.tolist(), strict=True):
        features = data.batch([rows[built.studies[number], index]])[0].flatten(1)[:, cell]
        expected = (features - memory.mean) / memory.std
        assert torch.allclose(token.float(), expected, atol=5e-3)


def test_numbers_of_studies_do_not_follow_their_names() -> None:
    names = [f"patient_{k:02}" for k in range(12)]
    built = build_memory(dataset(slices(dict.fromkeys(names, 1))), size=1000)
    assert sorted(built.studies) == names
    assert built.studies != names


def test_studies_have_equal_shares_of_the_pool() -> None:
    data = dataset(slices({"large": 60, "small": 4, "other": 4}))
    built = build_memory(data, size=1000, pool=150)
    counts = torch.bincount(built.memory.origin[:, 0])
    assert counts.tolist() == [50, 50, 50]


def test_a_pool_of_fewer_tokens_than_studies_still_works() -> None:
    built = build_memory(dataset(slices({f"c{k}": 2 for k in range(30)})), size=100, pool=10)
    assert len(built.memory.tokens) == 10


def test_each_modality_has_tokens_of_its_own() -> None:
    records = slices({"a": 5}) + slices({"b": 30}, modality="liver_ct")
    built = build_memory(dataset(records), size=40)
    numbers = {built.studies.index("a"): "brain_mri", built.studies.index("b"): "liver_ct"}
    kinds = [numbers[int(n)] for n in built.memory.origin[:, 0]]
    assert kinds == ["brain_mri"] * 40 + ["liver_ct"] * 40


def test_background_and_anomalous_slices_and_odd_studies_stay_out() -> None:
    records = slices({"a": 4, "odd": 2})
    records += [SliceRecord("sick", 0, True, "sick", "brain_mri")]
    inside = torch.zeros(7, 1, SIZE, SIZE, dtype=torch.bool)
    inside[..., : SIZE // 2, :] = True
    built = build_memory(dataset(records, foreground=inside), size=1000, without=["odd"])
    assert built.studies == ["a"]
    assert int(built.memory.origin[:, 2].max()) < GRID * GRID // 2
    assert len(built.memory.tokens) == 4 * GRID * GRID // 2


def test_no_slice_at_all_is_an_error() -> None:
    with pytest.raises(TrainingDataError, match="needs normal training slices"):
        build_memory(dataset(slices({"a": 2})), without=["a"])


def test_the_same_seed_gives_the_same_memory() -> None:
    data = dataset(slices({"a": 20, "b": 20}))
    first, again, other = (build_memory(data, size=50, pool=200, seed=s).memory for s in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


def test_far_tokens_are_chosen_before_near_ones() -> None:
    near = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    far = torch.eye(8) * 50
    chosen = k_centre(torch.cat([near, far]), 9)
    assert set(range(500, 508)) <= set(chosen.tolist())
    assert len(set(chosen.tolist())) == 9


def test_a_coreset_covers_better_than_chance() -> None:
    tokens = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)) ** 3
    chosen = tokens[k_centre(tokens, 100)]
    drawn = tokens[:100]
    radius, by_chance = (torch.cdist(tokens, part).amin(1).max() for part in (chosen, drawn))
    assert radius < 0.8 * by_chance


def test_a_cell_with_one_pixel_of_foreground_counts() -> None:
    """Heat at the rim of the foreground is that of such cells."""
    inside = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    inside[0, 0, 0, 0] = True
    assert cells_in_foreground(inside, GRID).sum(1).tolist() == [1, 0]


class Counted(FeatureDataset):
    """Counts the slices whose features were read since the statistics."""

    read = 0

    def batch(self, positions):  # type: ignore[no-untyped-def]
        self.read = max(self.read, len(positions))
        return super().batch(positions)


def test_features_are_read_in_small_parts() -> None:
    data = dataset(slices({f"c{k}": 200 for k in range(10)}))
    data.__class__ = Counted
    build_memory(data, size=100, pool=400)
    assert 0 < data.read <= 64  # type: ignore[attr-defined]
