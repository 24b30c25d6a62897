"""In which order training sees its slices, in one process or in several, and with what weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from kept_features import kept_features

from mcmiad_monai.data.features import FeatureDataset, pooled_statistics
from mcmiad_monai.training.loading import GlobalBatches, training_loader

CHANNELS, GRID = 3, 2


def features_of(counts: dict[str, int]) -> np.ndarray:
    """Values (n, C, g, g), each modality at a level of its own."""
    kinds = [name for name, count in counts.items() for _ in range(count)]
    rng = np.random.default_rng(len(kinds))
    level = np.array([10.0 * sorted(counts).index(kind) for kind in kinds])
    values = level[:, None, None, None] + rng.normal(size=(len(kinds), CHANNELS, GRID, GRID))
    values *= 1 + np.arange(CHANNELS)[:, None, None]
    return values.astype(np.float16)


def kept(counts: dict[str, int], *, anomalous: Sequence[int] = ()) -> FeatureDataset:
    kinds = [name for name, count in counts.items() for _ in range(count)]
    return kept_features(features_of(counts), modalities=kinds, anomalous=anomalous)


def pretend(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: rank)
    monkeypatch.setattr(idist, "get_world_size", lambda: world_size)


def epoch(
    dataset: FeatureDataset, batch_size: int, seed: int = 3, *, min_steps: int = 1
) -> list[list[int]]:
    torch.manual_seed(seed)
    return list(GlobalBatches(dataset, batch_size, min_steps))


def epochs_of(
    monkeypatch: pytest.MonkeyPatch, dataset: FeatureDataset, batch_size: int, world_size: int
) -> list[list[list[int]]]:
    """What each process sees."""
    seen = []
    for rank in range(world_size):
        pretend(monkeypatch, rank, world_size)
        seen.append(epoch(dataset, batch_size))
    return seen


ONE, SEVERAL = {"brain_mri": 24}, {"brain_mri": 18, "liver_ct": 6}


@pytest.mark.parametrize("counts", [ONE, SEVERAL], ids=["one modality", "several"])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_shares_of_all_processes_together_are_the_batch_of_one(
    monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], world_size: int
) -> None:
    dataset = kept(counts)
    alone = epoch(dataset, 8)
    shares = epochs_of(monkeypatch, dataset, 8, world_size)
    assert [len(own) for own in shares] == [len(alone)] * world_size
    for step, batch in enumerate(alone):
        parts = [own[step] for own in shares]
        assert sorted(i for part in parts for i in part) == sorted(batch)
        assert {len(part) for part in parts} == {8 // world_size}


@pytest.mark.parametrize("world_size", [2, 3])
def test_batch_that_cannot_be_shared_evenly_is_filled_with_its_own_first(
    monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    dataset = kept({"brain_mri": 23})
    alone = epoch(dataset, 8)
    assert [len(batch) for batch in alone] == [8, 8, 7]
    shares = epochs_of(monkeypatch, dataset, 8, world_size)
    for batch, parts in zip(alone, zip(*shares, strict=True), strict=True):
        missing = -len(batch) % world_size
        assert {len(part) for part in parts} == {(len(batch) + missing) // world_size}
        assert Counter(i for part in parts for i in part) == Counter(batch + batch[:missing])
    loader = training_loader(dataset, batch_size=8)  # of the last process
    assert len(loader) == 3
    assert [len(batch["label"]) for batch in loader] == [len(part) for part in shares[-1]]


@pytest.mark.parametrize("left", [1, 2, 3])
def test_no_process_is_left_without_a_slice(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """A process without a batch would leave the others waiting for its gradients."""
    dataset = kept({"brain_mri": 8 + left})
    alone = epoch(dataset, 8)
    shares = epochs_of(monkeypatch, dataset, 8, 8)
    for own in shares:
        assert [len(part) for part in own] == [1, 1]
    assert {own[1][0] for own in shares} == set(alone[1])


def test_order_follows_the_global_generator() -> None:
    dataset = kept(ONE)
    assert epoch(dataset, 8, seed=1) == epoch(dataset, 8, seed=1)
    assert epoch(dataset, 8, seed=1) != epoch(dataset, 8, seed=2)
    torch.manual_seed(1)
    first, second = list(GlobalBatches(dataset, 8)), list(GlobalBatches(dataset, 8))
    assert first != second  # the next epoch


def test_order_takes_one_number_of_the_generator_whatever_the_data() -> None:
    after = []
    for dataset in (kept({"brain_mri": 2}), kept(ONE), kept(SEVERAL)):
        epoch(dataset, 8, seed=5)
        after.append(torch.rand(3).tolist())
    assert after[0] == after[1] == after[2]


def test_slices_of_one_modality_are_each_seen_once() -> None:
    batches = epoch(kept({"liver_ct": 21}), 4)
    assert sorted(i for batch in batches for i in batch) == list(range(21))
    assert len(GlobalBatches(kept({"liver_ct": 21}), 4)) == len(batches) == 6


def test_several_modalities_have_equal_shares_and_slices_of_one_are_alike() -> None:
    counts = {"brain_mri": 600, "liver_ct": 30, "retina_oct": 3}
    dataset = kept(counts)
    drawn = [i for seed in range(10) for batch in epoch(dataset, 16, seed) for i in batch]
    assert len(drawn) == 10 * 633
    share = Counter(dataset.records[i].modality for i in drawn)
    sigma = np.sqrt(len(drawn) * (1 / 3) * (2 / 3))
    assert all(abs(share[name] - len(drawn) / 3) < 4 * sigma for name in counts)
    of_oct = Counter(i for i in drawn if dataset.records[i].modality == "retina_oct")
    sigma = np.sqrt(len(drawn) * (1 / 9) * (8 / 9))
    assert all(abs(of_oct[i] - len(drawn) / 9) < 4 * sigma for i in range(630, 633))


def test_few_slices_are_drawn_again_until_an_epoch_has_its_steps() -> None:
    one = kept({"brain_mri": 1})
    assert epoch(one, 4, min_steps=3) == [[0] * 4] * 3
    assert epoch(one, 4) == [[0]]
    few = [i for batch in epoch(kept({"brain_mri": 5}), 4, min_steps=50) for i in batch]
    assert len(few) == 200
    assert set(few) == set(range(5))
    enough = epoch(kept({"brain_mri": 21}), 4, min_steps=5)
    assert sorted(i for batch in enough for i in batch) == list(range(21))


def test_joined_datasets_are_parts_of_equal_weight_under_their_own_names() -> None:
    # two sets of one modality, which only their names tell apart
    parts = {"resc": kept({"retina_oct": 12}), "oct2017": kept({"retina_oct": 4})}
    joined = FeatureDataset.join(parts)
    assert len(joined) == 16
    assert joined.records == parts["resc"].records + parts["oct2017"].records
    for position, (name, row) in {0: ("resc", 0), 11: ("resc", 11), 15: ("oct2017", 3)}.items():
        assert torch.equal(joined[position]["image"], parts[name][row]["image"])
    assert torch.equal(joined.batch([15, 3])[0], parts["oct2017"].batch([3])[0])
    drawn = [i for batch in epoch(joined, 4, min_steps=500) for i in batch]
    assert np.mean(np.array(drawn) >= 12) == pytest.approx(0.5, abs=0.04)
    mean, std = joined.statistics()
    expected = balanced({k: d.batch(range(len(d))).double().numpy() for k, d in parts.items()})
    np.testing.assert_allclose(mean, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std, expected[1], rtol=1e-4)


def test_channel_that_is_constant_in_one_part_keeps_the_deviation_of_the_other() -> None:
    varying = 1 + 0.1 * np.tile([-1.0, 1.0], (4, 3, 2, 1))  # (4, C, g, g), deviation 0.1
    parts = {"a": kept_features(np.ones((7, 3, 2, 2))), "b": kept_features(varying)}
    mean, std = FeatureDataset.join(parts).statistics()
    np.testing.assert_allclose(mean, 1.0, rtol=1e-3)
    np.testing.assert_allclose(std, 0.1 / np.sqrt(2), rtol=2e-3)  # and not 0.71


@pytest.mark.parametrize(("batch_size", "world_size"), [(3, 4), (1, 2)])
def test_batch_smaller_than_the_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, world_size: int
) -> None:
    pretend(monkeypatch, 0, world_size)
    with pytest.raises(ValueError, match=rf"batch_size {batch_size} is shared by {world_size} pro"):
        training_loader(kept(ONE), batch_size=batch_size)
    training_loader(kept(ONE), batch_size=world_size)


def test_loader_gives_features_and_labels_in_that_order() -> None:
    dataset = kept({"brain_mri": 7}, anomalous=(2, 5))
    loader = training_loader(dataset, batch_size=3)
    # the loader itself takes a number of the generator before its sampler does
    torch.manual_seed(3)
    torch.empty((), dtype=torch.int64).random_()
    expected = list(GlobalBatches(dataset, 3))
    torch.manual_seed(3)
    batches = list(loader)
    assert [len(batch["label"]) for batch in batches] == [3, 3, 1]
    for rows, batch in zip(expected, batches, strict=True):
        assert torch.equal(batch["image"], dataset.batch(rows))
        assert batch["label"].tolist() == [int(row in (2, 5)) for row in rows]


def balanced(values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (C,) when every pixel counts by the share of its modality."""
    pixels = {k: v.transpose(1, 0, 2, 3).reshape(CHANNELS, -1) for k, v in values.items()}
    everything = np.concatenate(list(pixels.values()), axis=1)  # (C, pixels)
    weights = np.concatenate([np.full(v.shape[1], 1 / v.shape[1]) for v in pixels.values()])
    mean = np.average(everything, axis=1, weights=weights)
    variance = np.average((everything - mean[:, None]) ** 2, axis=1, weights=weights)
    return mean, np.sqrt(variance)


@pytest.mark.parametrize("counts", [ONE, SEVERAL, {"a": 40, "b": 3, "c": 1}], ids=["1", "2", "3"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_statistics_weigh_every_modality_alike(counts: dict[str, int], chunk: int) -> None:
    dataset = kept(counts)
    values = dataset.batch(range(len(dataset))).double().numpy()
    kinds = np.array([r.modality for r in dataset.records])
    mean, std = balanced({kind: values[kinds == kind] for kind in counts})
    found_mean, found_std = dataset.statistics(chunk)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found_std, std, rtol=1e-5)
    assert found_mean.dtype == found_std.dtype == torch.float32
    if len(counts) == 3:  # and that is something else than weighing every slice alike
        assert abs(mean[0] - values[:, 0].mean()) > 5


@pytest.mark.parametrize("anomalous", [(1, 2, 9), (6, 7, 8, 9)], ids=["some", "all of CT"])
def test_statistics_are_those_of_normal_slices_of_each_modality(anomalous: Sequence[int]) -> None:
    values = features_of({"brain_mri": 6, "liver_ct": 4}).astype(np.float64)
    values[list(anomalous)] = 500
    kinds = ["brain_mri"] * 6 + ["liver_ct"] * 4
    normal = {
        kind: values[[i for i in range(10) if kinds[i] == kind and i not in anomalous]]
        for kind in set(kinds)
    }
    # a modality without a normal slice has no weight
    expected = balanced({kind: own for kind, own in normal.items() if len(own)})
    found = kept_features(values, modalities=kinds, anomalous=anomalous).statistics()
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


def test_channel_that_never_changes_has_a_unit_deviation() -> None:
    mean, std = pooled_statistics(
        [(torch.tensor([1.0, 1.0]).double(), torch.zeros(2).double()),
         (torch.tensor([1.0, 3.0]).double(), torch.zeros(2).double())]
    )  # fmt: skip
    assert mean.tolist() == [1.0, 2.0]
    assert std.tolist() == [1.0, 1.0]  # the second differs between the parts, by 1 from their mean
