"""Augmented copies of training slices, and what sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcmiad_monai.data.augmentation import augmented_copies
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import SliceSample
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.training.encoders import prepare_encoder
from mcmiad_monai.training.loading import training_loader
from mcmiad_monai.training.method import preset

SIZE = 64
OPTIONS: dict[str, Any] = {"modality": "brain_mri", "size": SIZE, "progress": False}
METHOD = preset(encoder_name="test_efficientnet.r160_in1k", weights="random", pool="bilinear")


def sample(*, modality: str = "brain_mri", index: int = 3, channels: int = 1) -> SliceSample:
    """A disc of 0.4 with a lesion of 1.0 on its left."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 20**2
    lesion = (rows - 32) ** 2 + (columns - 20) ** 2 < 5**2
    image = torch.where(lesion, 1.0, 0.4 * disc)[None].repeat(channels, 1, 1)
    return SliceSample("study", index, image, lesion[None], True, "patient", modality)


def copies_of(made: SliceSample, count: int, seed: int = 0) -> list[SliceSample]:
    return list(augmented_copies([made], count, seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_label_lesion_and_foreground_move_with_the_image(channels: int) -> None:
    plain = sample(channels=channels)
    for copy in copies_of(plain, 8):
        assert (copy.case, copy.index, copy.anomalous) == ("study", 3, True)
        assert copy.image.shape == plain.image.shape
        assert not torch.equal(copy.image, plain.image)
        assert all(torch.equal(copy.image[0], channel) for channel in copy.image)
        inside = copy.image[:1] > 0
        # no rim around the foreground, and no hole in it
        assert int(inside.sum()) == pytest.approx(int((plain.image[:1] > 0).sum()), rel=0.01)
        assert int(copy.lesion.sum()) == pytest.approx(int(plain.lesion.sum()), rel=0.1)
        assert copy.image[:1][copy.lesion].mean() > copy.image[:1][inside & ~copy.lesion].max() / 2
        assert copy.lesion.dtype == torch.bool


def test_copy_depends_on_seed_slice_and_number_alone() -> None:
    first, second = copies_of(sample(), 2)
    later = copies_of(sample(index=9), 2)[1]
    again = copies_of(sample(), 2)[1]  # whatever was made in between
    assert torch.equal(again.image, second.image)
    others = [first, later, copies_of(sample(), 2, seed=1)[1]]
    assert not any(torch.equal(other.image, second.image) for other in others)


@pytest.mark.parametrize(
    ("modality", "sides"),
    [("brain_mri", {True, False}), ("retina_oct", {True, False}), ("liver_ct", {True})],
)
def test_slices_are_mirrored_where_anatomy_allows(modality: str, sides: set[bool]) -> None:
    def lesion_is_left(copy: SliceSample) -> bool:
        return float(copy.lesion.nonzero()[:, 2].float().mean()) < SIZE / 2

    assert {lesion_is_left(copy) for copy in copies_of(sample(modality=modality), 12)} == sides


@pytest.fixture(scope="module")
def features(cohort: Path) -> Callable[..., FeatureDataset]:
    cases = list(find_cases(cohort / "datalist.json", "val"))
    encoder = prepare_encoder(cases, modality="brain_mri", method=METHOD, size=SIZE)

    def make(**options: Any) -> FeatureDataset:
        return FeatureDataset(cases, encoder, only_normal=True, **OPTIONS, **options)

    return make


def everything(dataset: FeatureDataset) -> Tensor:
    return dataset.batch(list(range(len(dataset))))


def test_head_alone_sees_copies(features: Callable[..., FeatureDataset]) -> None:
    plain, dataset = features(), features(copies=2)
    assert plain.with_copies is plain
    assert dataset.records == plain.records
    assert torch.equal(everything(dataset), everything(plain))
    for found, expected in zip(dataset.statistics(), plain.statistics(), strict=True):
        assert torch.equal(found, expected)
    seen = dataset.with_copies
    assert len(seen) == 3 * len(plain)
    assert not seen.has_anomalies
    assert seen.records[len(plain) :] == [record for record in plain.records for _ in range(2)]
    # a slice and its copies are not the same to the encoder
    assert not torch.equal(everything(seen)[len(plain)], everything(plain)[0])
    loader = training_loader(dataset, batch_size=4)
    assert sum(len(batch["image"]) for batch in loader) == 3 * len(plain)


def test_copies_are_kept_on_disk_beside_the_slices(
    features: Callable[..., FeatureDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: dict[str, Any] = {"cache": "disk", "cache_dir": tmp_path}
    disk = features(copies=1, **cached)
    assert torch.equal(everything(disk.with_copies), everything(features(copies=1).with_copies))
    assert len(list(tmp_path.iterdir())) == 2
    features(copies=1, seed=1, **cached)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(FrozenEncoder, "forward", lambda *_: pytest.fail("the encoder ran again"))
    assert len(features(copies=1, **cached).with_copies) == 2 * len(features(**cached))


def test_joined_datasets_keep_their_copies_in_their_parts(
    features: Callable[..., FeatureDataset],
) -> None:
    joined = FeatureDataset.join({"a": features(copies=1), "b": features()})
    n = len(joined) // 2
    assert joined.parts == ["a"] * n + ["b"] * n
    seen = joined.with_copies
    assert seen.parts == [*joined.parts, *["a"] * n]
    weights = seen.weights()
    assert weights is not None
    shares = {p: sum(w for w, q in zip(weights, seen.parts, strict=True) if p == q) for p in "ab"}
    assert shares["a"] == pytest.approx(shares["b"])
