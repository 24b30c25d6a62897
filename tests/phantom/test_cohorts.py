"""Cohorts of phantom brains on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.data.decathlon_datalist import load_decathlon_datalist

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.phantom.cohorts import write_brain_cohort
from mcmiad_monai.transforms import preprocessing

COUNTS: dict[str, Any] = {"train": 2, "val": 3, "test_normal": 1, "test_lesion": 2}
SMALL: dict[str, Any] = {"shape": (40, 48, 10), "progress": False}
SECTIONS = ("training", "validation", "test")


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_brain_cohort(tmp_path_factory.mktemp("brains") / "cohort", **COUNTS, **SMALL)


def test_datalist_and_folders_list_the_same_studies(brains: Path, tmp_path: Path) -> None:
    datalist = json.loads((brains / "datalist.json").read_text(encoding="utf-8"))
    assert [len(datalist[section]) for section in SECTIONS] == [2, 3, 3]
    entries = [entry for section in SECTIONS for entry in datalist[section]]
    listed = {brains / entry[key] for entry in entries for key in entry if key != "modality"}
    files = {path for path in brains.rglob("*") if path.is_file()}
    assert files == listed | {brains / "datalist.json"}
    for_monai = load_decathlon_datalist(brains / "datalist.json", True, "test")
    assert {entry["image"] for entry in for_monai} < {str(path) for path in listed}
    for split in ("train", "val", "test"):
        (tmp_path / split).symlink_to(brains / split)
        by_list, by_folder = find_cases(brains, split), find_cases(tmp_path, split)
        assert {c["case"] for c in by_list} == {c["case"] for c in by_folder}
        assert all((case["label"] is None) == (split == "train") for case in by_folder)


def test_every_study_is_prepared_and_its_lesion_lies_in_the_foreground(brains: Path) -> None:
    prepare = preprocessing("brain_mri", mask_key="label")
    for case in find_cases(brains, "val") + find_cases(brains, "test"):
        sample = prepare(dict(case))
        inside, lesion = sample["image"] > 0, sample["label"] > 0
        assert 0.2 < inside.float().mean() < 1.0
        assert lesion.any() == ("normal" not in case["case"])
        assert inside[lesion].all()


def test_cohorts_of_different_seeds_share_no_study(brains: Path, tmp_path: Path) -> None:
    few = {"train": 1, "val": 0, "test_normal": 0, "test_lesion": 0, **SMALL}
    cohorts = [brains, *(write_brain_cohort(tmp_path / str(k), seed=k, **few) for k in (0, 1))]
    first, again, other = ((c / "train/train_000.nii.gz").read_bytes() for c in cohorts)
    assert first == again != other


def test_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_brain_cohort(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
