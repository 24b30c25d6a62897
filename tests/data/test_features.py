from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose, Lambdad, ScaleIntensityd

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.data.features import FeatureDataset, TrainingDataError
from mcmiad_monai.data.studies import iterate_slices, stack_images
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.training.encoders import prepare_encoder
from mcmiad_monai.training.method import preset
from mcmiad_monai.transforms import preprocessing, slice_batch

SMALL = "test_efficientnet.r160_in1k"
SMALL_METHOD = preset(encoder_name=SMALL, weights="random", pool="bilinear")
OPTIONS: dict[str, Any] = {"modality": "brain_mri", "size": 64, "progress": False}


@pytest.fixture(scope="module")
def encoder(cohort: Path) -> FrozenEncoder:
    cases = find_cases(cohort / "datalist.json", "train")
    return prepare_encoder(cases, modality="brain_mri", method=SMALL_METHOD, size=64)


def cases_of(cohort: Path, split: Any = "val") -> list[dict[str, Any]]:
    return list(find_cases(cohort / "datalist.json", split))


def test_features_are_those_of_the_encoder(cohort: Path, encoder: FrozenEncoder) -> None:
    cases = cases_of(cohort)
    dataset = FeatureDataset(cases, encoder, **OPTIONS)
    samples = list(iterate_slices(cases, "brain_mri", size=64))
    assert [(r.case, r.index) for r in dataset.records] == [(s.case, s.index) for s in samples]
    with torch.inference_mode():
        expected = encoder(stack_images(samples[:3]))
    # kept in half precision
    torch.testing.assert_close(dataset.batch([0, 1, 2]), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(dataset[1]["image"], dataset.batch([1])[0])
    assert torch.equal(dataset.foreground([2]), (samples[2].image > 0)[None])
    assert torch.equal(dataset.lesion([2])[0], samples[2].lesion)


def test_training_sees_normal_slices_only(cohort: Path, encoder: FrozenEncoder) -> None:
    everything = FeatureDataset(cases_of(cohort), encoder, **OPTIONS)
    normal = FeatureDataset(cases_of(cohort), encoder, only_normal=True, **OPTIONS)
    assert everything.has_anomalies
    assert not normal.has_anomalies
    assert len(normal) == sum(not r.anomalous for r in everything.records)


def test_disk_and_memory_hold_the_same(
    cohort: Path, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    memory = FeatureDataset(cases_of(cohort), encoder, **OPTIONS)
    disk = FeatureDataset(cases_of(cohort), encoder, cache="disk", cache_dir=tmp_path, **OPTIONS)
    rows = list(range(len(memory)))
    assert torch.equal(memory.batch(rows), disk.batch(rows))
    assert torch.equal(memory.lesion(rows), disk.lesion(rows))
    assert disk.records == memory.records
    assert not list(tmp_path.glob(".mcmiad-*"))


def test_disk_is_found_again_without_the_encoder(
    cohort: Path, encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: dict[str, Any] = {"cache": "disk", "cache_dir": tmp_path, **OPTIONS}
    first = FeatureDataset(cases_of(cohort), encoder, **cached)
    monkeypatch.setattr(encoder, "forward", lambda _: pytest.fail("the encoder ran again"))
    again = FeatureDataset(cases_of(cohort), encoder, **cached)
    assert torch.equal(again.batch([0]), first.batch([0]))


def test_changed_file_or_option_is_computed_anew(
    cohort: Path, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    copy = tmp_path / "study.nii.gz"
    shutil.copy(sorted((cohort / "train").glob("*.nii.gz"))[0], copy)
    cached: dict[str, Any] = {"cache": "disk", "cache_dir": tmp_path / "cache", **OPTIONS}
    cases = list(find_cases(copy))
    FeatureDataset(cases, encoder, **cached)
    shutil.copy(sorted((cohort / "train").glob("*.nii.gz"))[1], copy)
    FeatureDataset(cases, encoder, **cached)
    FeatureDataset(cases, encoder, **{**cached, "slice_range": (0.4, 0.6)})
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_context_shows_the_encoder_neighbours_and_keeps_features_of_its_own(
    cohort: Path, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    cached: dict[str, Any] = {"cache": "disk", "cache_dir": tmp_path, **OPTIONS}
    cases = cases_of(cohort)[:1]
    alone = FeatureDataset(cases, encoder, slice_range=(0.4, 0.6), **cached)
    between = FeatureDataset(cases, encoder, slice_range=(0.4, 0.6), context=3, **cached)
    assert len(list(tmp_path.iterdir())) == 2
    assert between.records == alone.records
    rows = list(range(len(alone)))
    assert torch.equal(between.foreground(rows), alone.foreground(rows))
    image = preprocessing("brain_mri")(dict(cases[0]))["image"]
    neighbours = [alone.records[0].index + k for k in (-1, 0, 1)]
    with torch.inference_mode():
        expected = encoder(slice_batch(image, neighbours, size=64)[None, :, 0])
    torch.testing.assert_close(between.batch([0]), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(between.batch([0]), alone.batch([0]), rtol=1e-2)


def test_cache_follows_the_transforms(cohort: Path, encoder: FrozenEncoder, tmp_path: Path) -> None:
    cached: dict[str, Any] = {"cache": "disk", "cache_dir": tmp_path, **OPTIONS}
    cases = cases_of(cohort)[:1]

    def recipe(*more: Any) -> Compose:
        return Compose([*preprocessing("brain_mri", mask_key="label").transforms, *more])

    plain = FeatureDataset(cases, encoder, **cached)
    FeatureDataset(cases, encoder, transform=recipe(), **cached)  # the same by other means
    assert len(list(tmp_path.iterdir())) == 1
    louder = recipe(ScaleIntensityd("image", minv=None, maxv=None, factor=1.0))
    changed = FeatureDataset(cases, encoder, transform=louder, **cached)
    assert not torch.equal(changed.batch([0]), plain.batch([0]))
    FeatureDataset(
        cases,
        encoder,
        transform=recipe(ScaleIntensityd("image", minv=None, maxv=None, factor=2.0)),
        **cached,
    )
    FeatureDataset(cases, encoder, transform=recipe(Lambdad("image", lambda x: x * 2)), **cached)
    FeatureDataset(cases, encoder, transform=recipe(Lambdad("image", lambda x: x * 3)), **cached)
    assert len(list(tmp_path.iterdir())) == 5


def test_statistics_are_those_of_normal_slices(cohort: Path, encoder: FrozenEncoder) -> None:
    dataset = FeatureDataset(cases_of(cohort), encoder, **OPTIONS)
    normal = [i for i, r in enumerate(dataset.records) if not r.anomalous]
    block = dataset.batch(normal).double()
    mean, std = dataset.statistics(chunk=3)
    torch.testing.assert_close(mean.double(), block.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    expected = block.var((0, 2, 3), correction=0).sqrt()
    torch.testing.assert_close(std.double(), expected, rtol=1e-3, atol=1e-4)


def test_unreadable_study_is_reported_and_passed_over(
    cohort: Path, encoder: FrozenEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"\x1f\x8b but no volume")
    cases = [{"case": "broken", "image": str(broken), "label": None, "anomalous": None}]
    dataset = FeatureDataset(cases + cases_of(cohort), encoder, **OPTIONS)
    assert list(dataset.failures) == ["broken"]
    assert "could not be read" in dataset.failures["broken"]
    assert "broken left out" in caplog.text
    assert {r.case for r in dataset.records} == {c["case"] for c in cases_of(cohort)}
    with pytest.raises(TrainingDataError, match="1 unreadable"):
        FeatureDataset(cases, encoder, **OPTIONS)


def test_disk_cache_needs_a_folder(cohort: Path, encoder: FrozenEncoder) -> None:
    with pytest.raises(ValueError, match="needs a cache_dir"):
        FeatureDataset(cases_of(cohort), encoder, cache="disk", **OPTIONS)


def test_random_encoder_is_calibrated_on_training_images(
    cohort: Path, encoder: FrozenEncoder
) -> None:
    assert str(encoder.provenance["batchnorm"]).startswith("calibrated on")
    dataset = FeatureDataset(cases_of(cohort, "train"), encoder, **OPTIONS)
    mean, std = dataset.statistics()
    # BatchNorm with its statistics leaves features of the order of one
    assert float(std.median()) < 10
    assert float(mean.abs().median()) < 10
    with pytest.raises(TrainingDataError, match="normal slices"):
        prepare_encoder([], modality="brain_mri", method=SMALL_METHOD)
