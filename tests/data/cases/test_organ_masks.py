"""Masks of organs beside masks of lesions: which is which, and to which study it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from case_files import touch, write_list

from mcmiad_monai.data.cases.find import CaseError, find_cases
from mcmiad_monai.data.cases.names import is_mask, is_organ_mask


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
        ("liver_lesion_mask.nii.gz", False),
        ("p7_liver_lesions.nii.gz", False),
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


def test_folder_of_files_pairs_both_kinds_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_liver_mask.nii.gz", "a_mask.nii.gz")
    touch(tmp_path, "b.nii.gz", "b_organ_seg.nii.gz", "c.nii.gz", "c_seg.nii.gz")
    touch(tmp_path, "my_liver_07.nii.gz", "my_liver_07_mask.nii.gz", "d.nii.gz")
    found = find_cases(tmp_path)
    assert masks(found) == {
        "a": ("a_mask.nii.gz", "a_liver_mask.nii.gz"),
        "b": (None, "b_organ_seg.nii.gz"),
        "c": ("c_seg.nii.gz", None),
        "d": (None, None),
        "my_liver_07": ("my_liver_07_mask.nii.gz", None),
    }
    assert found[0]["organ"] == str(tmp_path / "a_liver_mask.nii.gz")
    assert "organ" not in found[3]
    touch(tmp_path, "e_liver_mask.nii.gz")
    with pytest.raises(CaseError, match=r"e_liver_mask.nii.gz belongs to no image"):
        find_cases(tmp_path)


def test_images_and_masks_in_folders_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.png", "images/2.png", "masks/1.png", "masks/2_liver_mask.png")
    found = find_cases(tmp_path)
    assert masks(found) == {"1": ("1.png", None), "2": (None, "2_liver_mask.png")}
    assert found[0]["label"] == str(tmp_path / "masks" / "1.png")


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
    with pytest.raises(CaseError, match=r"2 organ masks \(liver_mask.nii, organ_seg.nii\)"):
        find_cases(tmp_path)
    touch(tmp_path / "flat", "a.nii", "a_liver_mask.nii", "a_organ_seg.nii", "b.nii")
    with pytest.raises(CaseError, match=r"two organ masks, a_liver_mask.nii and a_organ_seg.nii"):
        find_cases(tmp_path / "flat")


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


def test_datalist_tells_organ_and_modality(tmp_path: Path) -> None:
    touch(tmp_path, "i/1.nii", "o/1.nii", "i/2.nii")
    entries: list[dict[str, Any]] = [
        {"image": "i/1.nii", "organ": "o/1.nii", "modality": "liver_ct"},
        {"image": "i/2.nii", "organ": None, "modality": None},
    ]
    first, second = find_cases(write_list(tmp_path / "list.json", testing=entries))
    assert first["organ"] == str(tmp_path / "o" / "1.nii")
    assert first["modality"] == "liver_ct"
    assert first["label"] is None
    assert not {"organ", "modality"} & set(second)
    entries[1]["organ"] = "no.nii"
    with pytest.raises(CaseError, match=r"1 files that do not exist \(no.nii\)"):
        find_cases(write_list(tmp_path / "list.json", testing=entries))
