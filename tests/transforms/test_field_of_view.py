"""A square around the foreground, in millimetres, that nothing gets lost by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from oblique import SPACING, oblique_affine

from mcmiad_monai.data.studies import iterate_slices
from mcmiad_monai.inference.inferer import SliceHeatmapInferer
from mcmiad_monai.transforms import (
    FieldOfView,
    FieldOfViewd,
    as_heatmap,
    on_whole_grid,
    preprocessing,
    slice_batch,
)

SIZE = {"R": 70, "L": 70, "A": 90, "P": 90, "S": 14, "I": 14}
CODES = ["LPS", "RAS", "PIR", "SLA", "AIL", "IPR"]
FOREGROUND: dict[str, Any] = {"field_of_view": "foreground"}


def volume_of(values: np.ndarray, zooms: tuple[float, float, float] = (1, 1, 1)) -> MetaTensor:
    affine = oblique_affine("LPS") @ np.diag([*np.divide(zooms, (1.2, 0.9, 4.0)), 1])
    return MetaTensor(torch.as_tensor(values, dtype=torch.float32)[None], affine=affine)


def body(shape: tuple[int, int, int], *box: tuple[int, int]) -> np.ndarray:
    values = np.zeros(shape)
    values[tuple(slice(*ends) for ends in box)] = 0.4
    return values


def study(folder: Path, codes: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """A small head off the middle of a large image, with a bright lesion, and its middle.

    The mask has a second lesion in a corner of the image, far from the head.
    """
    shape, zooms = tuple(SIZE[c] for c in codes), [SPACING[c] for c in codes]
    in_plane = np.array([c in "RLAP" for c in codes])
    middle = np.where(in_plane, 0.62, 0.5) * shape
    offsets = (np.indices(shape).T - middle) * zooms
    radii = [{"R": 18, "L": 18, "A": 24, "P": 24}.get(c, 26) for c in codes]
    inside = ((offsets / radii) ** 2).sum(-1).T < 1
    rng = np.random.default_rng(0)
    values = np.where(inside, 300 + 15 * rng.standard_normal(shape), 30 * rng.random(shape))
    centre = middle.astype(int) + np.where(in_plane, 3, 1)
    mask = np.zeros(shape, np.uint8)
    low, high = centre - in_plane, centre + in_plane + 1
    near = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    values[near], mask[near] = 900, 1
    mask[tuple(np.where(in_plane, 0, centre))] = 2
    affine = oblique_affine(codes)
    for name, array in (("image", values.astype(np.int16)), ("label", mask)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    case = {name: str(folder / f"{name}.nii.gz") for name in ("image", "label")}
    return {"case": "p", **case}, tuple(int(k) for k in centre)


@pytest.mark.parametrize("codes", CODES)
def test_heat_lands_on_the_lesion_on_the_grid_of_the_file(tmp_path: Path, codes: str) -> None:
    case, lesion = study(tmp_path, codes)
    prepare = preprocessing("brain_mri", mask_key="label", **FOREGROUND)
    sample = prepare(dict(case))
    shown = sample["image"]
    sides = np.array(shown.shape[1:3]) * np.linalg.norm(shown.affine.numpy()[:3, :2], axis=0)
    assert abs(sides[0] - sides[1]) <= 1.2  # a square in millimetres, to a voxel
    assert shown.shape[3] == 14
    assert sides.max() == pytest.approx(2 * 24 * 1.12, abs=2.4)  # mm
    heat = SliceHeatmapInferer()(shown[None], lambda images: images**4)
    sample["pred"] = heat[0]
    back = Invertd("pred", prepare, orig_keys="image", nearest_interp=False)(sample)["pred"]
    assert tuple(back.shape[1:]) == tuple(SIZE[c] for c in codes)
    assert np.array_equal(back.affine.numpy(), nib.load(case["image"]).affine)
    hottest = np.unravel_index(int(back[0].argmax()), back.shape[1:])
    assert np.abs(np.subtract(hottest, lesion)).max() <= 1
    head = preprocessing("brain_mri")(dict(case))["image"]
    assert int((back > 0).sum()) == int((head > 0).sum())  # nothing of the head was cut off


@pytest.mark.parametrize("codes", CODES)
def test_masks_follow_and_keep_what_lies_outside(tmp_path: Path, codes: str) -> None:
    case, _ = study(tmp_path, codes)
    prepare = preprocessing("brain_mri", mask_key="label", **FOREGROUND)
    sample = prepare(dict(case))
    whole = preprocessing("brain_mri", mask_key="label")(dict(case))
    assert sample["label"].shape == sample["image"].shape
    assert torch.equal(sample["label"].affine, sample["image"].affine)
    assert int((sample["label"] > 0).sum()) == 9
    back = on_whole_grid(sample["label"])
    assert torch.equal(back.as_tensor(), whole["label"].as_tensor())
    assert torch.equal(back.affine, whole["label"].affine)
    stored = nib.load(case["label"])
    found = Compose(prepare.transforms).inverse(sample)["label"]
    np.testing.assert_array_equal(found[0].numpy() > 0, np.asarray(stored.dataobj) > 0)


def test_voxels_keep_their_value_and_their_place_in_millimetres() -> None:
    values = body((40, 50, 3), (10, 25), (30, 45), (0, 3))
    values[12:20, 33:40] += np.random.default_rng(0).random((8, 7, 3))
    volume = volume_of(values, (1.5, 0.8, 5))
    cropped = FieldOfView()(volume)
    brightest = [np.argwhere(v[0].numpy() == v.max().item())[0] for v in (volume, cropped)]
    places = [v.affine.numpy() @ [*k, 1] for v, k in zip((volume, cropped), brightest, strict=True)]
    np.testing.assert_allclose(*places, atol=1e-9)
    assert not np.array_equal(*brightest)
    assert float(cropped.max()) == float(volume.max())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_square_has_the_margin_and_reaches_beyond_the_image(axis: int) -> None:
    box = [(0, 20), (4, 44), (2, 5)]
    order = {0: [2, 0, 1], 1: [0, 2, 1], 2: [0, 1, 2]}[axis]
    whole = [60, 50, 7]
    values = body(tuple(whole[k] for k in order), *(box[k] for k in order))
    volume = volume_of(values)
    cropped = FieldOfView(axis)(volume)
    plane = [a for a in range(3) if a != axis]
    assert [cropped.shape[1 + a] for a in plane] == [45, 45]  # 40 voxels and 6 % on both sides
    assert cropped.shape[1 + axis] == 7
    assert int((cropped > 0).sum()) == int((volume > 0).sum())
    along = [cropped[0].any(axis).any(1 - k).nonzero().flatten() for k in (0, 1)]
    gaps = {(int(rows[0]), 45 - 1 - int(rows[-1])) for rows in along}
    assert all(abs(low - high) <= 1 for low, high in gaps)  # in the middle
    back = FieldOfView(axis)
    again = back.inverse(back(volume))
    assert torch.equal(again.as_tensor(), volume.as_tensor())
    assert torch.equal(again.affine, volume.affine)
    assert again.applied_operations == []


def test_square_is_one_in_millimetres() -> None:
    flat = volume_of(body((60, 90, 2), (20, 40), (20, 60), (0, 2)), (2.0, 1.0, 3.0))
    cropped = FieldOfView(margin=0.0)(flat)
    assert tuple(cropped.shape) == (1, 20, 40, 2)
    # the same head, sampled otherwise, gives the same network slice, but for the edge
    fine = volume_of(body((120, 90, 2), (40, 80), (20, 60), (0, 2)), (1.0, 1.0, 3.0))
    slices = [slice_batch(FieldOfView()(v), [0], size=32) for v in (flat, fine)]
    assert float((slices[0] - slices[1]).abs().mean()) < 0.02
    squeezed = slice_batch(flat, [0], size=32)
    assert float((squeezed - slices[0]).abs().mean()) > 0.1


def test_specks_do_not_decide() -> None:
    clean = body((80, 80, 10), (20, 60), (20, 60), (0, 10))
    dirty = clean.copy()
    dirty[2:4, 2:4, 3], dirty[77, 40, :5] = 0.9, 0.9
    view = FieldOfView()
    assert view.window(volume_of(dirty)) == view.window(volume_of(clean))


def test_specks_alone_are_no_body() -> None:
    values = torch.zeros(1, 40, 40, 4)
    values[:, 18:21, 18:21, 1] = 1  # 0.6 % of its slice
    volume = MetaTensor(values, affine=torch.eye(4))
    assert FieldOfView()(volume).shape == volume.shape
    values[:, 10:30, 18:21, 1] = 1
    assert FieldOfView()(MetaTensor(values, affine=torch.eye(4))).shape != volume.shape


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_image_without_foreground_or_without_background_stays_whole(value: float) -> None:
    volume = volume_of(np.full((30, 50, 4), value))
    view = FieldOfView()
    shown = view(volume)
    assert torch.equal(shown.as_tensor(), volume.as_tensor())
    assert torch.equal(shown.affine, volume.affine)
    assert torch.equal(view.inverse(shown).as_tensor(), volume.as_tensor())


def test_colours_have_one_square() -> None:
    grey = volume_of(body((40, 40, 1), (10, 20), (10, 20), (0, 1)))
    colours = MetaTensor(grey.as_tensor().expand(3, -1, -1, -1), affine=grey.affine)
    assert FieldOfView()(colours).shape == (3, 11, 11, 1)


def test_map_of_another_size_is_refused() -> None:
    view = FieldOfView()
    shown = view(volume_of(body((40, 40, 2), (10, 20), (10, 20), (0, 2))))
    wrong = as_heatmap(torch.zeros(shown.shape), shown)[:, :5]
    with pytest.raises(ValueError, match=r"cannot go back from a crop to \(11, 11, 2\) voxels"):
        view.inverse(wrong)


def test_input_is_left_alone_and_unmarked_volumes_are_returned() -> None:
    volume = volume_of(body((40, 40, 2), (10, 20), (10, 20), (0, 2)))
    shown = FieldOfViewd(["image", "label"])({"image": volume, "label": volume})
    shown["image"] += 1
    assert volume.applied_operations == []
    assert float(volume.max()) == pytest.approx(0.4)
    assert on_whole_grid(volume) is volume
    plain = torch.zeros(1, 2, 2, 2)
    assert on_whole_grid(plain) is plain


def test_square_is_around_the_organ_in_its_region(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1, 4, 1])
    values = np.full((60, 60, 5), -1000, np.int16)
    values[5:55, 5:55] = np.random.default_rng(0).integers(0, 120, (50, 50, 5))
    organ = np.zeros(values.shape, np.uint8)
    organ[10:30, 20:35, 1:4] = 1
    for name, array in (("image", values), ("organ", organ)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    case = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "organ")}
    shown = preprocessing("liver_ct", region="organ", **FOREGROUND)(dict(case))["image"]
    assert tuple(shown.shape) == (1, 22, 22, 5)  # 20 voxels and the margin
    assert int((shown > 0).sum()) == int(organ.sum())
    body_too = preprocessing("liver_ct", **FOREGROUND)(dict(case))["image"]
    assert tuple(body_too.shape) == (1, 56, 56, 5)


def test_slice_with_a_lesion_outside_is_not_trained_on(tmp_path: Path) -> None:
    case, lesion = study(tmp_path, "LPS")
    mask = np.zeros(tuple(SIZE[c] for c in "LPS"), np.uint8)
    mask[0, 0, lesion[2]] = 1
    nib.save(nib.Nifti1Image(mask, oblique_affine("LPS")), case["label"])
    prepare = preprocessing("brain_mri", mask_key="label", **FOREGROUND)
    found = list(iterate_slices([case], "brain_mri", size=32, transform=prepare))
    assert [s.index for s in found if s.anomalous] == [lesion[2]]
    assert not any(s.lesion.any() for s in found)


def test_field_of_view_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="field_of_view 'head' is not known; use \"whole\""):
        preprocessing("brain_mri", field_of_view="head")  # type: ignore[arg-type]
