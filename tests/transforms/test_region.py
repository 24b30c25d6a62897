"""Looking inside an organ alone: what lies outside its mask is exactly background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from oblique import oblique_affine

from mcmiad_monai.data.studies import StudyDataset, iterate_slices
from mcmiad_monai.inference.inferer import SLICE_SCORES, SliceHeatmapInferer
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.transforms import (
    LoadOrganMaskd,
    NormalizeStudyd,
    OrganRegiond,
    load_volume,
    preprocessing,
)

SIZE = {"R": 34, "L": 34, "A": 40, "P": 40, "S": 12, "I": 12}
ORIENTATIONS = ["LPS", "RAS", "PIR", "SLA", "AIL"]


def box(shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """A box off the middle on every axis, so that any flip or swap moves it."""
    inside = np.zeros(shape, dtype=bool)
    places = zip(shape, (0.0, 0.11, -0.07), strict=True)
    inside[tuple(slice(int((low + s) * n), int((high + s) * n)) for n, s in places)] = True
    return inside


def write(path: Path, values: np.ndarray, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(values, affine), path)
    return str(path)


def study(folder: Path, codes: str = "LPS", *, dtype: str = "u1") -> dict[str, Any]:
    """A body in Hounsfield units, with the mask of an organ and of a lesion in it."""
    shape = tuple(SIZE[c] for c in codes)
    affine = oblique_affine(codes)
    body = np.random.default_rng(0).integers(-60, 140, shape)
    body[~box(shape, 0.12, 0.88)] = -1000
    organ, lesion = box(shape, 0.25, 0.65), box(shape, 0.35, 0.45)
    return {
        "case": "p7",
        "image": write(folder / "ct.nii.gz", body.astype("i2"), affine),
        "organ": write(folder / "organ.nii.gz", organ.astype(dtype), affine),
        "label": write(folder / "label.nii.gz", lesion.astype("u1"), affine),
    }


def mask_in_the_world(image: MetaTensor, path: str) -> np.ndarray:
    """A mask on an image's grid by millimetres: where is each voxel centre in the mask's file?"""
    stored = nib.load(path)
    found = np.indices(image.shape[1:]).reshape(3, -1).T
    world = nib.affines.apply_affine(image.affine.numpy(), found)
    places = np.rint(nib.affines.apply_affine(np.linalg.inv(stored.affine), world)).astype(int)
    values = np.asarray(stored.dataobj)[tuple(places.T)]
    return values.reshape(image.shape[1:]) > 0


def error_of(case: dict[str, Any], **options: Any) -> str:
    """What the report of a cohort says about a study."""
    prepare = preprocessing("liver_ct", region="organ", **options)
    return StudyDataset([case], prepare)[0]["error"]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_outside_is_zero_and_inside_is_as_without_a_mask(tmp_path: Path, codes: str) -> None:
    case = study(tmp_path, codes)
    whole = preprocessing("liver_ct")(case)["image"]
    confined = preprocessing("liver_ct", region="organ")(case)["image"]
    inside = mask_in_the_world(whole, case["organ"])
    assert 0.02 < inside.mean() < 0.2
    assert torch.equal(confined.affine, whole.affine)
    np.testing.assert_array_equal(confined[0].numpy(), np.where(inside, whole[0].numpy(), 0))
    assert (confined[0].numpy()[inside] > 0).all()
    assert confined.dtype == torch.float32
    assert confined.meta["modality"] == "liver_ct"


def test_lesion_mask_stays_whole_and_organ_mask_goes(tmp_path: Path) -> None:
    case = study(tmp_path, "PIR")
    done = preprocessing("liver_ct", mask_key="label", region="organ")(case)
    assert "organ" not in done
    expected = mask_in_the_world(done["image"], case["label"])
    np.testing.assert_array_equal(done["label"][0].numpy() > 0, expected)
    whole = preprocessing("liver_ct", mask_key="label")(case)
    assert whole["organ"] == case["organ"]  # not asked for, not read
    assert float(whole["image"].sum()) > float(done["image"].sum())


def heat_of_everything(images: torch.Tensor) -> torch.Tensor:
    return torch.full_like(images, 2.0)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_heatmap_on_the_grid_of_the_file_is_zero_outside_the_organ(
    tmp_path: Path, codes: str
) -> None:
    case = study(tmp_path, codes)
    prepare = preprocessing("liver_ct", region="organ")
    sample = prepare(case)
    sample["pred"] = SliceHeatmapInferer(size=64)(sample["image"][None], heat_of_everything)[0]
    scores = sample["pred"].meta[SLICE_SCORES]
    home = Invertd("pred", prepare, orig_keys="image", nearest_interp=False, to_tensor=True)
    heat = home(sample)["pred"][0].numpy()
    inside = np.asarray(nib.load(case["organ"]).dataobj) > 0
    assert heat.shape == inside.shape
    assert (heat[~inside] == 0).all()
    assert (heat[inside] > 0).all()
    slices = inside.any(tuple(a for a in range(3) if codes[a] not in "SI"))
    assert int(torch.isfinite(scores).sum()) == slices.sum() < len(slices)


def test_slices_without_the_organ_are_not_trained_on(tmp_path: Path) -> None:
    case = study(tmp_path, "LPS")
    organ = np.asarray(nib.load(case["organ"]).dataobj)
    inside = preprocessing("liver_ct", mask_key="label", region="organ")
    found = list(iterate_slices([case], "liver_ct", size=SIZE["P"], transform=inside))
    assert [s.index for s in found] == np.nonzero(organ.any((0, 1)))[0].tolist()
    everywhere = list(iterate_slices([case], "liver_ct", size=SIZE["P"]))
    assert len(everywhere) > len(found)
    # the share of the foreground, whatever the resize does at its edge
    share = np.mean([float((s.image > 0).float().mean()) for s in found])
    assert share == pytest.approx(organ[..., found[0].index].mean(), abs=0.05)


def labels_of(folder: Path, case: dict[str, Any], dtype: str) -> np.ndarray:
    """Many organs in one mask: the organ is 6, a box that overlaps nothing else 2, the rest 1."""
    organ = np.asarray(nib.load(case["organ"]).dataobj) > 0
    many = np.ones(organ.shape, dtype=dtype)
    many[:, :, -2:] = 2
    many[organ] = 6
    case["organ"] = write(folder / "organs.nii.gz", many, nib.load(case["image"]).affine)
    return many


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
@pytest.mark.parametrize("label", [2, 6])
def test_one_of_many_organs_is_chosen_by_its_value(tmp_path: Path, dtype: str, label: int) -> None:
    case = study(tmp_path)
    whole = preprocessing("liver_ct")(case)["image"][0].numpy()
    many = labels_of(tmp_path, case, dtype)
    confined = preprocessing("liver_ct", region="organ", organ_label=label)(case)["image"]
    np.testing.assert_array_equal(confined[0].numpy(), np.where(many == label, whole, 0))
    all_of_them = preprocessing("liver_ct", region="organ")(case)["image"]
    np.testing.assert_array_equal(all_of_them[0].numpy(), whole)  # all above 0 if not chosen


def test_missing_mask_is_refused_and_told_how_to_give_one(tmp_path: Path) -> None:
    case = study(tmp_path)
    for absent in ({**case, "organ": None}, {k: v for k, v in case.items() if k != "organ"}):
        message = error_of(absent)
        assert f"{case['image']} has no organ mask" in message
        assert "liver_mask" in message
        assert "region: whole" in message
    assert "does not exist" in error_of({**case, "organ": str(tmp_path / "no.nii.gz")})


def test_empty_and_misplaced_masks_are_refused(tmp_path: Path) -> None:
    case = study(tmp_path, "AIL")
    image, organ = nib.load(case["image"]), np.asarray(nib.load(case["organ"]).dataobj)
    shifted = image.affine.copy()
    shifted[:3, 3] += 3 * image.affine[:3, 1]  # three voxels along the second axis
    sizes = f"{organ[:-1].shape}, but its image has {image.shape}"
    for mask, affine, reason in (
        (organ * 0, image.affine, "mask.nii.gz has no voxel above 0"),
        (organ, shifted, "lies up to 3.0 voxels away"),
        (organ, image.affine @ np.diag([-1, 1, 1, 1.0]), "voxels away"),
        (organ[:-1], image.affine, sizes),
    ):
        assert reason in error_of({**case, "organ": write(tmp_path / "mask.nii.gz", mask, affine)})
    message = error_of(case, organ_label=7)
    assert "has no voxel of the value 7" in message
    assert "organ_label" in message


def test_transforms_work_on_keys_of_other_names(tmp_path: Path) -> None:
    case = study(tmp_path)
    ct = load_volume(case["image"])
    loaded: Any = LoadOrganMaskd("liver", ref_key="ct")({"ct": ct, "liver": case["organ"]})
    bright = {**loaded, "ct": ct * 0 + 0.5}
    confined = OrganRegiond("ct", organ_key="liver")(bright)
    assert "liver" not in confined
    assert torch.equal(confined["ct"].as_tensor(), loaded["liver"].as_tensor() * 0.5)
    assert "liver" in bright  # the case that was given is left as it was


@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("region", ["whole", "organ"])
def test_unified_preprocessing_is_the_recipe_of_each_modality(
    tmp_path: Path, name: str, region: Any
) -> None:
    case = study(tmp_path, "SLA")
    if name != "liver_ct":
        image = nib.load(case["image"])
        signal = np.clip(image.get_fdata() + 100, 0, None).astype("i2")
        case["image"] = write(tmp_path / "mr.nii.gz", signal, image.affine)
    own = preprocessing(name, region=region)(case)["image"]
    unified = preprocessing("unified", region=region)({**case, "modality": name})["image"]
    assert torch.equal(unified.as_tensor(), own.as_tensor())
    assert torch.equal(unified.affine, own.affine)
    assert unified.meta["modality"] == own.meta["modality"] == name
    others = [
        preprocessing(other, check_modality=False)(case)["image"]
        for other in MODALITIES
        if other != name
    ]
    assert not any(torch.equal(unified.as_tensor(), o.as_tensor()) for o in others)


def test_volume_that_does_not_say_what_it_is_is_not_normalised(tmp_path: Path) -> None:
    volume = load_volume(study(tmp_path)["image"])
    with pytest.raises(ValueError, match=r"modality None .*Put StudyModalityd before"):
        NormalizeStudyd("image")({"image": volume})
    volume.meta["modality"] = "unified"
    with pytest.raises(ValueError, match=r"modality 'unified'"):
        NormalizeStudyd("image")({"image": volume})
