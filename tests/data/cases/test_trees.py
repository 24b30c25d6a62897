"""Folders as they come: mixed, from a CD, with our own results in them, with an unclear one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from case_files import names, touch

from mcmiad_monai.data.cases.explain import explain, not_read
from mcmiad_monai.data.cases.find import CaseError, find_cases
from mcmiad_monai.data.cases.splits import find_studies, training_splits
from mcmiad_monai.data.studies import prepare_study


def test_stray_slice_hides_neither_files_nor_folders(tmp_path: Path) -> None:
    source = touch(tmp_path / "all", "stray.dcm", "p1.nii.gz", "p2.nii.gz", "p3/1.dcm", "p3/2.dcm")
    assert names(find_cases(source)) == ["all", "p1", "p2", "p3"]
    pictures = touch(tmp_path / "scans", "stray.dcm", "1.png", "2.png")
    assert names(find_cases(pictures)) == ["scans", "1", "2"]


def test_pictures_beside_a_series_are_named_and_no_studies(tmp_path: Path) -> None:
    touch(tmp_path, "p/1.dcm", "p/2.dcm", "p/thumbnail.jpg")
    assert names(find_cases(tmp_path)) == ["p"]
    assert explain(tmp_path) == {
        tmp_path / "p/thumbnail.jpg": "a picture beside the DICOM series of p/"
    }


def test_mask_beside_a_series_goes_to_the_image_that_has_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "p/1.dcm", "p/2.dcm", "p/a.nii.gz", "p/a_mask.nii.gz")
    found = {case["case"]: case["label"] for case in find_cases(tmp_path)}
    assert found == {"p": None, "a": str(tmp_path / "p/a_mask.nii.gz")}


def test_index_of_a_medium_is_no_slice_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "DICOM/PAT0/SE0/1.dcm")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    index = b"\2\0\2\0UI\x16\x001.2.840.10008.1.3.10\0\0"
    (tmp_path / "DICOM" / "INDEX").write_bytes(bytes(128) + b"DICM" + index)
    assert names(find_cases(tmp_path)) == ["SE0"]
    assert "index of a DICOM medium" in explain(tmp_path)[tmp_path / "DICOMDIR"]


@pytest.mark.parametrize("ending", ["heatmap.nii.gz", "heatmap.tiff"])
def test_results_of_an_earlier_run_are_no_studies(tmp_path: Path, ending: str) -> None:
    touch(tmp_path, "p1.nii.gz", f"out/p1/p1_{ending}", "out/p1/p1_mask.nii.gz")
    touch(tmp_path, "out/killed/killed_heatmap.nii.gz", "out/killed/killed_mask.nii.gz")
    scores = {"case": "p1", "volume_score": None}
    (tmp_path / "out/p1/p1_scores.json").write_text(json.dumps(scores))
    assert names(find_cases(tmp_path)) == ["p1"]
    assert explain(tmp_path)[tmp_path / f"out/p1/p1_{ending}"] == "a result of an earlier run"
    unified = touch(tmp_path / "unified", "brain_mri/a.nii.gz", "out/a/a_heatmap.nii.gz")
    assert names(find_studies(unified, modality="unified")) == ["a"]


def test_files_that_only_look_like_results_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "p1/p1.nii.gz", "p1/p1_mask.nii.gz", "p2/x_heatmap.nii.gz")
    (tmp_path / "p1/p1_scores.json").write_text('{"reader": 3}')
    first, second = find_cases(tmp_path)
    assert (first["case"], second["case"]) == ("p1", "p2")
    assert first["label"] == str(tmp_path / "p1/p1_mask.nii.gz")


def test_unclear_folder_is_refused_and_the_others_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "p1/flair.nii.gz", "p1/t1.nii.gz", "p2/flair.nii.gz", "b.nii.gz")
    cases = find_cases(tmp_path)
    assert names(cases) == ["a", "b", "p1", "p2"]
    (refused,) = [case for case in cases if "refused" in case]
    assert refused["image"] == str(tmp_path / "p1")
    assert "--image-name" in refused["refused"]
    with pytest.raises(CaseError, match="holds 2 images"):
        prepare_study(refused, dict)
    assert explain(tmp_path) == {
        tmp_path / f"p1/{name}.nii.gz": "of p1/, which is refused" for name in ("flair", "t1")
    }
    train, val = training_splits(tmp_path, fraction=0.5)
    assert refused["case"] in names(train)  # where it is reported and left out
    assert refused["case"] not in names(val)


def test_source_with_nothing_but_unclear_folders_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, *(f"p{i}/{name}.nii.gz" for i in (1, 2) for name in ("flair", "t1")))
    with pytest.raises(CaseError, match=r"p1 holds 2 images.* 1 more like it"):
        find_cases(tmp_path)


def test_unclear_masks_of_anomalous_images_are_no_small_matter(tmp_path: Path) -> None:
    touch(tmp_path, "test/good/1.png", "test/Ungood/2.png", "test/Ungood/3.png")
    touch(tmp_path, "test/Ungood/2_mask.png")
    with pytest.raises(CaseError, match=r"none for 3\.png"):
        find_cases(tmp_path, "test")


def test_what_was_not_read_is_one_sentence_by_reason(tmp_path: Path) -> None:
    touch(tmp_path, "ok.nii.gz", "pair.hdr", "pair.img", ".hidden.nii.gz")
    assert names(find_cases(tmp_path)) == ["ok", "pair"]
    assert not_read([tmp_path]) is None
    touch(tmp_path, *(f"{name}.nii.bz2" for name in "abcd"), "lost_mask/x_mask.nii.gz")
    assert not_read([tmp_path]) == (
        "5 files were not read: a.nii.bz2, b.nii.bz2, c.nii.bz2 and 1 more (no image: neither a "
        "known suffix nor DICOM); x_mask.nii.gz (a mask without an image in its folder)"
    )


def test_bids_is_read_by_its_suffix_and_subjects_alone(tmp_path: Path) -> None:
    for subject in ("sub-01", "sub-02"):
        for kind in ("FLAIR", "T1w"):
            touch(tmp_path, f"{subject}/ses-1/anat/{subject}_ses-1_{kind}.nii.gz")
        touch(tmp_path, f"{subject}/ses-1/dwi/{subject}_ses-1_dwi.nii.gz")
    touch(tmp_path, "derivatives/x/sub-01/anat/sub-01_FLAIR.nii.gz", "dataset_description.json")
    touch(tmp_path, "sub-02/ses-2/anat/sub-02_ses-2_run-1_FLAIR.nii.gz")
    touch(tmp_path, "sub-02/ses-2/anat/sub-02_ses-2_run-2_FLAIR.nii.gz")
    cases = find_cases(tmp_path, image_name="FLAIR")
    assert names(cases) == [
        "sub-01_ses-1_FLAIR",
        "sub-02_ses-1_FLAIR",
        "sub-02_ses-2_run-1_FLAIR",
        "sub-02_ses-2_run-2_FLAIR",
    ]
    assert [case["patient"] for case in cases] == ["sub-01", "sub-02", "sub-02", "sub-02"]
    reasons = {path.name: why for path, why in explain(tmp_path, image_name="FLAIR").items()}
    assert reasons["sub-01_ses-1_dwi.nii.gz"] == "its name lacks the word FLAIR"
    assert "BIDS data set" in reasons["sub-01_FLAIR.nii.gz"]
