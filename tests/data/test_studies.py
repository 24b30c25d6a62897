"""From cases to slices: a bad study is a report, and the mask decides what is normal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from mcmiad_monai.data.studies import (
    SliceSample,
    StudyDataset,
    batches,
    iterate_slices,
    stack_images,
)
from mcmiad_monai.errors import root_message
from mcmiad_monai.phantom.brain import make_phantom
from mcmiad_monai.transforms import preprocessing, slices_in_range

SHAPE = (24, 28, 8)  # canonical: eight axial slices


def make_case(
    folder: Path,
    name: str = "a",
    *,
    seed: int = 3,
    lesion: str | None = None,
    orientation: str = "LPS",
    with_mask: bool = True,
    mask: np.ndarray | None = None,
    anomalous: bool | None = None,
) -> dict[str, Any]:
    """A phantom on disk, as a case; another mask than its own can be given."""
    phantom = make_phantom(seed, lesion=lesion, shape=SHAPE, orientation=orientation)
    case: dict[str, Any] = {"case": name, "image": str(folder / f"{name}.nii.gz"), "label": None}
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), case["image"])
    if with_mask:
        case["label"] = str(folder / f"{name}_mask.nii.gz")
        drawn = phantom.mask if mask is None else mask
        nib.save(nib.Nifti1Image(drawn, phantom.affine), case["label"])
    return {**case, "anomalous": anomalous}


def broken_case(folder: Path, name: str = "broken") -> dict[str, Any]:
    """A case whose file has four dimensions."""
    path = folder / f"{name}.nii.gz"
    values = np.random.default_rng(0).normal(size=(4, 4, 4, 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return {"case": name, "image": str(path), "label": None, "anomalous": None}


def lesion_voxel(*position: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[position] = 1
    return mask


def indices(samples: list[SliceSample]) -> list[int]:
    return [sample.index for sample in samples]


def slices_of(*cases: dict[str, Any], **options: Any) -> list[SliceSample]:
    return list(iterate_slices(cases, "brain_mri", size=32, **options))


def test_bad_study_is_an_error_and_not_an_exception(tmp_path: Path) -> None:
    cases = [
        broken_case(tmp_path),
        make_case(tmp_path),
        {"case": "gone", "image": str(tmp_path / "gone.nii.gz")},
    ]
    dataset = StudyDataset(cases, preprocessing("brain_mri"))
    assert len(dataset) == 3
    broken, good, gone = (dataset[i] for i in range(3))
    assert set(broken) == {"case", "error"}
    assert broken["case"] == "broken"
    # the message of the loader, not what MONAI wraps around it
    assert broken["error"].startswith("VolumeError: ")
    assert "4 dimensions (4, 4, 4, 5)" in broken["error"]
    assert "applying transform" not in broken["error"]
    assert gone["case"] == "gone"
    assert "gone.nii.gz" in gone["error"]
    assert good["image"].shape == (1, *SHAPE)


def test_study_knows_its_case_and_class_and_has_no_empty_keys(tmp_path: Path) -> None:
    options: dict[str, Any] = {"with_mask": False}
    cases = [make_case(tmp_path, "p.1", **options)]
    cases.append(make_case(tmp_path, "p.2", anomalous=True, **options))
    first, second = StudyDataset(cases, preprocessing("brain_mri"))
    assert first["image"].meta["case"] == "p.1"
    assert second["image"].meta["case"] == "p.2"
    # a default collate takes no None
    assert all(value is not None for value in first.values())
    assert "anomalous" not in first["image"].meta
    assert second["image"].meta["anomalous"] is True
    assert isinstance(cases[0]["image"], str)  # the cases stay paths


def test_message_is_that_below_the_wrappers_and_above_the_cause() -> None:
    error, wrapped = ValueError("what to do about it"), RuntimeError("applying transform <Load>")
    error.__cause__, wrapped.__cause__ = KeyError("a detail"), error
    assert root_message(wrapped) == root_message(error) == "ValueError: what to do about it"


def test_slices_are_on_the_network_grid_and_in_order(tmp_path: Path) -> None:
    samples = slices_of(make_case(tmp_path))
    assert indices(samples) == sorted(set(indices(samples)))
    assert len(samples) >= 6
    for sample in samples:
        assert sample.image.shape == sample.lesion.shape == (1, 32, 32)
        assert sample.lesion.dtype == torch.bool
        assert sample.image.min() == 0  # outside the head
        assert sample.image.max() > 0.2


def test_lesion_too_small_for_the_network_grid_still_counts(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, f"x{x}", mask=lesion_voxel(x, 12, 4)) for x in range(10, 14)]
    found = [s for s in iterate_slices(cases, "brain_mri", size=8) if s.index == 4]
    assert all(s.anomalous for s in found)
    assert not all(s.lesion.any() for s in found)  # at least one vanished in the resize


@pytest.mark.parametrize("voxels", [None, 0, 1], ids=["no mask", "empty mask", "lesion"])
@pytest.mark.parametrize("folder", [None, False, True])
def test_mask_decides_which_slices_are_normal_and_without_one_the_folder(
    tmp_path: Path, voxels: int | None, folder: bool | None
) -> None:
    mask = voxels * lesion_voxel(10, 12, 4) if voxels is not None else None
    case = make_case(tmp_path, mask=mask, with_mask=mask is not None, anomalous=folder)
    every = slices_of(case)
    anomalous = [4] if voxels else indices(every) if folder and mask is None else []
    assert [s.index for s in every if s.anomalous] == anomalous
    normal = [k for k in indices(every) if k not in anomalous]
    assert indices(slices_of(case, only_normal=True)) == normal


@pytest.mark.parametrize("orientation", ["RPI", "ILP", "RSA"])
def test_slices_do_not_depend_on_how_the_study_is_stored(tmp_path: Path, orientation: str) -> None:
    expected = slices_of(make_case(tmp_path, "a", lesion="mass"))
    found = slices_of(make_case(tmp_path, "b", lesion="mass", orientation=orientation))
    assert indices(found) == indices(expected)
    assert any(s.anomalous for s in expected)
    for one, other in zip(found, expected, strict=True):
        assert one.anomalous == other.anomalous
        assert torch.equal(one.lesion, other.lesion)
        torch.testing.assert_close(one.image, other.image, rtol=1e-4, atol=1e-4)


def test_range_of_slices_by_hand(tmp_path: Path) -> None:
    every, inner = (0.0, 1.0), (0.3, 0.8)
    by_hand = [(10, every, 0, 10), (10, inner, 3, 8), (155, inner, 46, 124), (3, (0.5, 0.6), 1, 2)]
    by_hand.append((1, inner, 0, 1))  # a picture is always looked at
    for n, share, start, stop in by_hand:
        assert slices_in_range(n, share) == slice(start, stop)
    assert indices(slices_of(make_case(tmp_path), slice_range=(0.25, 0.75))) == [2, 3, 4, 5]


def test_slices_with_too_little_foreground_are_skipped(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    share = {s.index: (s.image > 0).float().mean().item() for s in slices_of(case)}
    kept = indices(slices_of(case, min_foreground=0.4))
    assert 0 < len(kept) < len(share)
    assert min(share[k] for k in kept) > max(share[k] for k in share if k not in kept)


def test_volumes_are_read_one_at_a_time(tmp_path: Path) -> None:
    stream = iterate_slices([make_case(tmp_path), broken_case(tmp_path)], "brain_mri", size=32)
    assert next(stream).case == "a"
    (tmp_path / "broken.nii.gz").unlink()  # not yet looked at
    assert {s.case for s in stream} == {"a"}


@pytest.mark.parametrize(("count", "sizes"), [(7, [3, 3, 1]), (6, [3, 3]), (2, [2]), (0, [])])
def test_batches_hold_every_sample_once_and_in_order(count: int, sizes: list[int]) -> None:
    empty = torch.zeros(1, 2, 2)
    samples = [SliceSample("a", k, empty + k, empty > 0, False, "p") for k in range(count)]
    groups = list(batches(iter(samples), 3))
    assert [len(g) for g in groups] == sizes
    assert [s.index for g in groups for s in g] == list(range(count))
    for group in groups:
        assert stack_images(group)[:, 0, 0, 0].tolist() == [s.index for s in group]
