"""Cohorts on disk, of the package's brains and of the tests' own livers and retinas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_phantoms import write_mixed_cohort

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.phantom.cohorts import write_brain_cohort
from mcmiad_monai.transforms import load_mask, preprocessing

COUNTS: dict[str, Any] = {"train": 2, "val": 3, "test_normal": 1, "test_lesion": 2}
SECTIONS = ("training", "validation", "test")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed_cohort(tmp_path_factory.mktemp("mixed") / "cohort", **COUNTS)


@pytest.mark.parametrize("name", sorted(MODALITIES))
def test_datalist_and_folders_list_the_same_studies(mixed: Path, name: str, tmp_path: Path) -> None:
    datalist = json.loads((mixed / name / "datalist.json").read_text(encoding="utf-8"))
    assert [len(datalist[section]) for section in SECTIONS] == [2, 3, 3]
    entries = [entry for section in SECTIONS for entry in datalist[section]]
    listed = {mixed / name / entry[key] for entry in entries for key in entry if key != "modality"}
    files = {path for path in (mixed / name).rglob("*") if path.is_file()}
    assert files == listed | {mixed / name / "datalist.json"}
    for split in ("train", "val", "test"):
        (tmp_path / split).symlink_to(mixed / name / split)
        by_list, by_folder = find_cases(mixed / name, split), find_cases(tmp_path, split)
        assert {c["case"] for c in by_list} == {c["case"] for c in by_folder}
        assert all((case["label"] is None) == (split == "train") for case in by_folder)


@pytest.mark.parametrize("name", sorted(MODALITIES))
def test_every_study_is_prepared_and_its_lesion_lies_in_the_foreground(
    mixed: Path, name: str
) -> None:
    prepare = preprocessing(MODALITIES[name], mask_key="label")
    for case in find_cases(mixed / name, "val") + find_cases(mixed / name, "test"):
        sample = prepare(dict(case))
        inside, lesion = sample["image"] > 0, sample["label"] > 0
        assert 0.2 < inside.float().mean() <= 1.0
        assert lesion.any() == ("normal" not in case["case"])
        assert inside[lesion].all()
        if name == "liver_ct":
            organ = load_mask(mixed / name / "organs" / f"{case['case']}.nii.gz")
            mask = load_mask(case["label"])
            np.testing.assert_array_equal(mask.affine, organ.affine)
            assert not (mask.bool() & ~organ.bool()).any()


def test_datalist_of_all_modalities_is_read_by_monai(mixed: Path) -> None:
    from monai.data.decathlon_datalist import load_decathlon_datalist

    entries = load_decathlon_datalist(mixed / "datalist.json", True, "test")
    assert all(Path(entry[key]).is_file() for entry in entries for key in ("image", "label"))
    # MONAI makes a path of the name, since a folder of that name lies beside the list
    assert sorted({Path(entry["modality"]).name for entry in entries}) == sorted(MODALITIES)
    assert all(entry["case"].startswith(Path(entry["modality"]).name) for entry in entries)
    assert len({case["case"] for case in find_cases(mixed)}) == 24


def test_cohorts_of_different_seeds_share_no_study(mixed: Path, tmp_path: Path) -> None:
    few = {"train": 1, "val": 0, "test_normal": 0, "test_lesion": 0, "shape": (40, 48, 10)}
    cohorts = [mixed / "brain_mri"]
    for seed in (0, 1):
        cohorts.append(write_brain_cohort(tmp_path / str(seed), seed=seed, progress=False, **few))
    first, again, other = ((c / "train/train_000.nii.gz").read_bytes() for c in cohorts)
    assert first == again != other


def test_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_brain_cohort(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
