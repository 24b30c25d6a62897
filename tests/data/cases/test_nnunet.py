"""nnU-Net's folders: cases of one channel, with the masks of the labels' folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from case_files import names, touch, write_list

from mcmiad_monai.data.cases.explain import explain
from mcmiad_monai.data.cases.find import CaseError, MissingSplitError, find_cases
from mcmiad_monai.data.cases.splits import training_splits


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "Dataset001_Brain"
    touch(root, *(f"imagesTr/b_{i}_000{c}.nii.gz" for i in range(4) for c in range(2)))
    touch(root, *(f"labelsTr/b_{i}.nii.gz" for i in range(4)))
    touch(root, "imagesTs/b_9_0000.nii.gz", "imagesTs/b_9_0001.nii.gz")
    write_list(root / "dataset.json", channel_names={"0": "T1", "1": "FLAIR"}, numTraining=4)
    return root


@pytest.mark.parametrize("word", ["FLAIR", "flair", "0001"])
def test_channel_is_chosen_by_its_name_or_number(dataset: Path, word: str) -> None:
    train = find_cases(dataset, "train", image_name=word)
    assert names(train) == ["b_0", "b_1", "b_2", "b_3"]
    for case in train:
        assert Path(case["image"]).name == f"{case['case']}_0001.nii.gz"
        assert case["label"] == str(dataset / "labelsTr" / f"{case['case']}.nii.gz")
    (test,) = find_cases(dataset, "test", image_name=word)
    assert (test["case"], test["label"]) == ("b_9", None)
    assert len(find_cases(dataset, image_name=word)) == 5
    reasons = explain(dataset, image_name=word)
    assert all(path.name.endswith("_0000.nii.gz") for path in reasons)
    assert len(reasons) == 5


def test_several_channels_without_a_choice_are_listed(dataset: Path) -> None:
    with pytest.raises(CaseError, match=r"2 channels \(0000 T1, 0001 FLAIR\).*--image-name T1"):
        find_cases(dataset)
    with pytest.raises(CaseError, match="image_name='T2'"):
        find_cases(dataset, image_name="T2")


def test_held_out_studies_come_of_the_training_images(dataset: Path) -> None:
    with pytest.raises(MissingSplitError):
        find_cases(dataset, "val", image_name="FLAIR")
    train, val = training_splits(dataset, fraction=0.25, image_name="FLAIR")
    assert sorted(names(train + val)) == ["b_0", "b_1", "b_2", "b_3"]


def test_one_folder_of_images_is_a_source_with_its_masks(dataset: Path) -> None:
    cases = find_cases(dataset / "imagesTr", "test", image_name="FLAIR")
    assert [Path(case["label"]).name for case in cases] == [f"b_{i}.nii.gz" for i in range(4)]
    raw = find_cases(dataset.parent, image_name="FLAIR")
    assert len(raw) == 5
    assert all(case["label"] is None or "labelsTr" in case["label"] for case in raw)


def test_list_of_the_first_version_lacks_the_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz")
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    write_list(tmp_path / "dataset.json", training=[entry], modality={"0": "FLAIR"}, test=[])
    (case,) = find_cases(tmp_path, "train")
    assert (case["case"], Path(case["image"]).name) == ("a", "a_0000.nii.gz")


def test_numbers_of_cases_are_no_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0001.nii.gz", "imagesTr/a_0002.nii.gz", "labelsTr/a_0002.nii.gz")
    found = {case["case"]: bool(case["label"]) for case in find_cases(tmp_path)}
    assert found == {"a_0001": False, "a_0002": True}
