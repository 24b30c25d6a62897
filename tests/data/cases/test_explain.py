"""Every file of a source is read, or has the reason for which it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from case_files import touch, write_list

from mcmiad_monai.data.cases.explain import explain
from mcmiad_monai.data.cases.find import find_cases


def reasons(root: Path, *arguments: Any, **options: Any) -> dict[str, str]:
    found = explain(root, *arguments, **options)
    return {path.relative_to(root).as_posix(): reason for path, reason in found.items()}


@pytest.mark.parametrize(
    ("read", "not_read"),
    [
        (
            ["a.nii.gz", "a_seg.nii.gz", "a.json", "b.mhd", "b.raw"],
            {
                ".c.nii.gz": "hidden",
                ".git/x.nii.gz": "hidden",
                "notes.txt": "no image",
                "c.raw": "no image",
                "dataset.json": "no datalist",
            },
        ),
        (
            ["train/a.nii.gz", "test/b/image.nii.gz", "test/b/mask.nii.gz"],
            {"old/c.nii.gz": "outside of train/, test/", "d.nii.gz": "outside of train/, test/"},
        ),
        (
            ["s/image.nii.gz", "t/1.dcm", "t/2.dcm", "t/lesion_mask.nii.gz", "t/deep/1.dcm"],
            {
                "s/raw/x.nii.gz": "s/ is one study",
                "t/x.png": "a picture beside the DICOM series of t/",
                "DICOMDIR": "the index of a DICOM medium",
                "u/mask.nii.gz": "a mask without an image",
            },
        ),
        (
            ["images/1.png", "masks/1.png"],
            {
                "images/old/2.png": "of images/ only image files",
                "images/3.dcm": "of images/ only image files",
                "masks/old/1.png": "of masks/ only image files",
            },
        ),
        (
            ["good/1.png", "Ungood/img/2.png", "Ungood/anomaly_mask/2.png"],
            {"images/3.png": "beside Ungood/, good/", "4.dcm": "beside Ungood/, good/"},
        ),
    ],
)
def test_files_that_are_not_read_have_their_reason(
    tmp_path: Path, read: list[str], not_read: dict[str, str]
) -> None:
    touch(tmp_path, *read, *not_read)
    if (tmp_path / "dataset.json").exists():
        write_list(tmp_path / "dataset.json", training=3)
    found = reasons(tmp_path)
    assert set(found) == set(not_read)
    assert all(found[name].startswith(reason) for name, reason in not_read.items()), found
    cases = find_cases(tmp_path)
    for name in not_read:  # and so it changes nothing when they go
        (tmp_path / name).unlink()
    assert find_cases(tmp_path) == cases


def test_datalist_leaves_out_what_it_does_not_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "sub/b.nii.gz", "c.nii.gz")
    test = [{"image": "./sub/b.nii.gz"}]
    write_list(tmp_path / "datalist.json", training=["a.nii.gz"], test=test)
    assert reasons(tmp_path) == {"c.nii.gz": "not listed in datalist.json"}
    assert reasons(tmp_path, "test")["a.nii.gz"] == "not in the split test"


def test_split_leaves_out_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/a.png", "train/Ungood/b.png", "val/good/c.png")
    assert reasons(tmp_path, "val") == {
        "train/Ungood/b.png": "not in the split val",
        "train/good/a.png": "not in the split val",
    }


def test_image_name_leaves_out_the_other_sequences(tmp_path: Path) -> None:
    touch(tmp_path, "p/p_t1.nii.gz", "p/p_flair.nii.gz", "p/p_seg.nii.gz")
    assert reasons(tmp_path, image_name="flair") == {
        "p/p_t1.nii.gz": "its name lacks the word flair"
    }


def test_single_file_leaves_out_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    assert explain(tmp_path / "a.nii.gz") == {}
