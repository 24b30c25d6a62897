"""Masks of organs beside masks of lesions: which is which, and to which study it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.data.cases.find import CaseError, find_cases
from mcmiad_monai.data.cases.names import is_mask, is_organ_mask, without_mask_words


def touch(root: Path, *names: str) -> Path:
    """Create empty files; finding goes by names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def masks(cases: list[dict[str, Any]]) -> dict[str, tuple[str | None, str | None]]:
    """Lesion mask and organ mask of each case."""

    def name(path: str | None) -> str | None:
        return None if path is None else Path(path).name

    return {case["case"]: (name(case["label"]), name(case.get("organ"))) for case in cases}


@pytest.mark.parametrize(
    ("name", "organ"),
    [
        ("liver_mask.nii.gz", True),
        ("p7_liver_mask.nii.gz", True),
        ("p7-organ-seg.mgz", True),
        ("Liver.Segmentation.nii", True),
        ("organ_label.png", True),
        ("mask.nii.gz", False),
        ("p7_seg.nii.gz", False),
        ("tumor_mask.nii.gz", False),
        ("liver.nii.gz", False),  # an image of the liver
        ("liver_07.nii.gz", False),
        ("liver_07_mask.nii.gz", False),  # a lesion mask of the study liver_07
        ("liver_mask_07.nii.gz", False),
        ("deliver_mask.nii.gz", False),  # words are whole
    ],
)
def test_organ_mask_is_told_by_the_word_before_its_mask_words(name: str, organ: bool) -> None:
    assert is_organ_mask(Path(name)) == organ
    assert not organ or is_mask(Path(name))


@pytest.mark.parametrize(
    "name", ["liver_lesion_mask.nii.gz", "p7_liver_lesions.nii.gz", "liver_lesion_seg.nii.gz"]
)
def test_mask_of_lesions_of_the_liver_is_one_of_lesions(name: str) -> None:
    assert is_mask(Path(name))
    assert not is_organ_mask(Path(name))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("p7_liver_mask.nii.gz", "p7"),
        ("p7-organ_seg.nii", "p7"),
        ("liver_mask.png", ""),
        ("p7_seg.nii.gz", "p7"),
        ("liver_07_mask.nii.gz", "liver_07"),
        ("my_liver_07_mask.nii.gz", "my_liver_07"),
    ],
)
def test_name_without_mask_words_is_that_of_the_image(name: str, stem: str) -> None:
    assert without_mask_words(Path(name)) == stem


def test_folder_of_files_pairs_both_kinds_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_liver_mask.nii.gz", "a_mask.nii.gz")
    touch(tmp_path, "b.nii.gz", "b_organ_seg.nii.gz", "c.nii.gz", "c_seg.nii.gz", "d.nii.gz")
    assert masks(find_cases(tmp_path)) == {
        "a": ("a_mask.nii.gz", "a_liver_mask.nii.gz"),
        "b": (None, "b_organ_seg.nii.gz"),
        "c": ("c_seg.nii.gz", None),
        "d": (None, None),
    }


def test_paths_are_whole_and_a_case_without_has_no_key(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_liver_mask.nii.gz", "d.nii.gz")
    with_mask, without = find_cases(tmp_path)
    assert with_mask["organ"] == str(tmp_path / "a_liver_mask.nii.gz")
    assert "organ" not in without


def test_images_and_masks_in_folders_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.png", "images/2.png", "masks/1.png", "masks/2_liver_mask.png")
    assert masks(find_cases(tmp_path)) == {"1": ("1.png", None), "2": (None, "2_liver_mask.png")}


@pytest.mark.parametrize("organ", ["liver_mask.nii.gz", "p1_organ_label.nii.gz"])
@pytest.mark.parametrize("image", ["ct.nii.gz", "s/1.dcm"])
def test_one_folder_a_case_may_hold_both_kinds(tmp_path: Path, organ: str, image: str) -> None:
    folder = f"p1/{Path(image).parent}"
    touch(tmp_path, f"p1/{image}", f"{folder}/{organ}", f"{folder}/tumor_seg.nii.gz", "p2/ct.nii")
    name = "s" if image.endswith("dcm") else "p1"
    assert masks(find_cases(tmp_path)) == {
        name: ("tumor_seg.nii.gz", organ),
        "p2": (None, None),
    }


def test_mask_name_chooses_a_lesion_mask_and_leaves_the_organ(tmp_path: Path) -> None:
    touch(tmp_path, "p1/ct.nii", "p1/liver_mask.nii", "p1/tumor_seg.nii", "p1/cyst_seg.nii")
    with pytest.raises(CaseError, match="mask_name"):
        find_cases(tmp_path)
    found = find_cases(tmp_path, mask_name="tumor")
    assert masks(found) == {"p1": ("tumor_seg.nii", "liver_mask.nii")}


@pytest.mark.parametrize("image", ["ct.nii", "1.dcm"])
def test_two_organ_masks_of_a_case_are_listed_and_refused(tmp_path: Path, image: str) -> None:
    touch(tmp_path, f"p1/{image}", "p1/liver_mask.nii", "p1/organ_seg.nii")
    with pytest.raises(
        CaseError, match=r"p1 holds 2 organ masks \(liver_mask.nii, organ_seg.nii\)"
    ):
        find_cases(tmp_path)


def test_two_organ_masks_of_a_file_are_refused_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "a_liver_mask.nii", "a_organ_seg.nii", "b.nii")
    with pytest.raises(CaseError, match=r"two organ masks, a_liver_mask.nii and a_organ_seg.nii"):
        find_cases(tmp_path)


def test_organ_mask_without_image_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "c_liver_mask.nii")
    with pytest.raises(CaseError, match=r"c_liver_mask.nii belongs to no image"):
        find_cases(tmp_path)


def test_organ_masks_of_anomalous_images_do_not_stand_for_lesion_masks(tmp_path: Path) -> None:
    touch(tmp_path, "test/good/1.png", "test/Ungood/2.png", "test/Ungood/3.png")
    touch(tmp_path, "test/good/1_liver_mask.png", "test/Ungood/2_liver_mask.png")
    found = find_cases(tmp_path, "test")  # that 3 has no organ mask is not said here
    assert masks(found) == {
        "1": (None, "1_liver_mask.png"),
        "2": (None, "2_liver_mask.png"),
        "3": (None, None),
    }
    assert {case["case"]: case["anomalous"] for case in found} == {"1": False, "2": True, "3": True}


def write_list(path: Path, entries: list[Any]) -> Path:
    path.write_text(json.dumps({"testing": entries}))
    return path


def test_datalist_tells_organ_and_modality(tmp_path: Path) -> None:
    touch(tmp_path, "i/1.nii", "o/1.nii", "i/2.nii")
    entries = [
        {"image": "i/1.nii", "organ": "o/1.nii", "modality": "liver_ct"},
        {"image": "i/2.nii", "organ": None, "modality": None},
    ]
    first, second = find_cases(write_list(tmp_path / "list.json", entries))
    assert first["organ"] == str(tmp_path / "o" / "1.nii")
    assert first["modality"] == "liver_ct"
    assert first["label"] is None
    assert not {"organ", "modality"} & set(second)


def test_missing_organ_mask_of_a_datalist_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "1.nii", "2.nii", "2_organ.nii")
    entries = [{"image": "1.nii", "organ": "no.nii"}, {"image": "2.nii", "organ": "2_organ.nii"}]
    with pytest.raises(CaseError, match=r"1 files that do not exist \(no.nii\)"):
        find_cases(write_list(tmp_path / "list.json", entries))
