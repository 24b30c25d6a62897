from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mcmiad_monai.data.splits import training_splits
from mcmiad_monai.data.studies import (
    StudyDataset,
    batches,
    iterate_slices,
    select_slices,
    slices_in_range,
    stack_images,
)
from mcmiad_monai.transforms import VolumeError, preprocessing


def write(path: Path, array: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 4.0, 1.0])), path)  # L, P, S
    return str(path)


def head(n: int = 6) -> np.ndarray:
    """A noisy disc in every slice but the last, which is air."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    disc = ((y - 15.5) ** 2 + (x - 15.5) ** 2 < 150)[..., None]
    values = np.where(disc, 400 + 40 * rng.standard_normal((32, 32, n)), 0)
    values[..., -1] = 0
    return values.astype(np.int16)


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    mask = np.zeros((32, 32, 6), np.uint8)
    mask[15, 15, 2] = 1  # a single voxel makes a slice anomalous
    return {
        "case": "a",
        "image": write(tmp_path / "image.nii.gz", head()),
        "label": write(tmp_path / "mask.nii.gz", mask),
        "anomalous": None,
    }


def test_slices_know_where_they_came_from(case: dict[str, Any]) -> None:
    samples = list(iterate_slices([case], "brain_mri", size=32))
    assert [s.index for s in samples] == [0, 1, 2, 3, 4]  # the last is background
    assert [s.anomalous for s in samples] == [False, False, True, False, False]
    assert samples[2].lesion.sum() == 1
    volume = preprocessing("brain_mri")({"image": case["image"]})["image"]
    torch.testing.assert_close(samples[1].image[0], volume[0, :, :, 1].T.as_tensor())


def test_only_normal_slices(case: dict[str, Any]) -> None:
    samples = iterate_slices([case], "brain_mri", size=16, only_normal=True)
    assert [s.index for s in samples] == [0, 1, 3, 4]
    known = {**case, "label": None, "anomalous": True}
    assert not list(iterate_slices([known], "brain_mri", size=16, only_normal=True))
    assert all(s.anomalous for s in iterate_slices([known], "brain_mri", size=16))


def test_bad_study_is_told_and_the_others_go_on(case: dict[str, Any], tmp_path: Path) -> None:
    broken = {"case": "b", "image": write(tmp_path / "b.nii", np.full((8, 8, 4), 7, np.int16))}
    failures: dict[str, str] = {}
    samples = list(
        iterate_slices([{**broken, "label": None}, case], "brain_mri", failures=failures, size=16)
    )
    assert {s.case for s in samples} == {"a"}
    assert list(failures) == ["b"]
    assert failures["b"].startswith("VolumeError")
    told = StudyDataset([broken], preprocessing("brain_mri"))[0]
    assert told == {"case": "b", "error": failures["b"]}


def test_sample_carries_its_case(case: dict[str, Any]) -> None:
    sample = StudyDataset([{**case, "anomalous": True}], preprocessing("brain_mri"))[0]
    assert sample["image"].meta["case"] == "a"
    assert sample["image"].meta["anomalous"] is True


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [(24, (0.0, 1.0), (0, 24)), (17, (0.29, 0.83), (4, 14)), (1, (0.4, 0.6), (0, 1))],
)
def test_range_is_a_share_of_the_slices(n: int, share: Any, expected: tuple[int, int]) -> None:
    found = slices_in_range(n, share)
    assert (found.start, found.stop) == expected


def test_slices_without_enough_foreground_are_passed_over() -> None:
    volume = torch.zeros(1, 10, 10, 3)
    volume[0, :, :, 1] = 0.5
    volume[0, 0, 0, 2] = 0.5  # one pixel of a hundred
    chosen = MetaTensor(volume)
    assert select_slices(chosen, axis=2, min_foreground=0.02) == [1]
    assert select_slices(chosen, axis=2, min_foreground=0.01) == [1, 2]


def test_batches_keep_order_and_the_rest(case: dict[str, Any]) -> None:
    samples = list(iterate_slices([case], "brain_mri", size=16))
    groups = list(batches(iter(samples), 2))
    assert [[s.index for s in g] for g in groups] == [[0, 1], [2, 3], [4]]
    assert stack_images(groups[0]).shape == (2, 1, 16, 16)


def test_mask_of_another_shape_fails_the_study(case: dict[str, Any], tmp_path: Path) -> None:
    case["label"] = write(tmp_path / "other.nii.gz", np.zeros((32, 32, 5), np.uint8))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the cause is looked at
        preprocessing("brain_mri", mask_key="label")(dict(case))
    assert isinstance(caught.value.__cause__, VolumeError)


def test_own_validation_split_is_used(cohort: Path) -> None:
    train, val = training_splits(cohort / "datalist.json", fraction=0.5)
    assert (len(train), len(val)) == (4, 4)


def test_studies_are_held_out_where_there_is_no_validation_split(cohort: Path) -> None:
    train, val = training_splits(cohort / "train", fraction=0.25, seed=1)
    assert (len(train), len(val)) == (3, 1)
    assert training_splits(cohort / "train", fraction=0.25, seed=1) == (train, val)
    assert not {c["case"] for c in train} & {c["case"] for c in val}
