"""Phantom cohorts on disk: the datalist, the folders and the files say the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.phantom.cohorts import (
    write_brain_cohort,
    write_liver_cohort,
    write_mixed_cohort,
    write_retina_cohort,
)
from mcmiad_monai.transforms import load_mask, load_volume, preprocessing

LIVER = (40, 34, 8)
RETINA = (64, 48)
COUNTS: dict[str, Any] = {
    "train": 2,
    "val": 3,
    "test_normal": 1,
    "test_lesion": 2,
    "progress": False,
}
SECTIONS = ("training", "validation", "test")
WRITERS = (write_brain_cohort, write_liver_cohort, write_retina_cohort, write_mixed_cohort)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed_cohort(
        tmp_path_factory.mktemp("mixed") / "cohort",
        brain_shape=(40, 48, 10),
        liver_shape=LIVER,
        retina_shape=RETINA,
        **COUNTS,
    )


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_retina_cohort(
        tmp_path_factory.mktemp("oct") / "cohort",
        shape=RETINA,
        scans=3,
        form="volumes",
        **COUNTS,
    )


def listed(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "datalist.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", sorted(MODALITIES))
def test_datalist_has_the_parts_that_were_asked_for(mixed: Path, name: str) -> None:
    datalist = listed(mixed / name)
    assert [len(datalist[section]) for section in SECTIONS] == [2, 3, 3]
    keys = {"image", "label", "modality"} | ({"organ"} if name == "liver_ct" else set())
    for section in SECTIONS:
        for entry in datalist[section]:
            assert set(entry) == keys - ({"label"} if section == "training" else set())
            assert entry["modality"] == name
            assert all((mixed / name / entry[key]).is_file() for key in entry if key != "modality")
    files = [p for p in (mixed / name).rglob("*") if p.is_file() and p.name != "datalist.json"]
    entries = [entry for section in SECTIONS for entry in datalist[section]]
    assert len(files) == sum(len(entry) - 1 for entry in entries)  # nothing else was left behind


@pytest.mark.parametrize("name", sorted(MODALITIES))
def test_cohort_is_found_by_its_folders_as_by_its_datalist(
    mixed: Path, name: str, tmp_path: Path
) -> None:
    for folder in ("train", "val", "test"):
        (tmp_path / folder).symlink_to(mixed / name / folder)
    for split in ("train", "val", "test"):
        by_list, by_folder = find_cases(mixed / name, split), find_cases(tmp_path, split)
        names = [{case["case"] for case in cases} for cases in (by_list, by_folder)]
        assert names[0] == names[1]
        assert all((case["label"] is None) == (split == "train") for case in by_folder)


@pytest.mark.parametrize("name", sorted(MODALITIES))
def test_masks_match_case_names_and_validation_has_both_classes(mixed: Path, name: str) -> None:
    for split in ("val", "test"):
        found = set()
        for case in find_cases(mixed / name, split):
            image, mask = load_volume(case["image"]), load_mask(case["label"])
            assert image.shape == mask.shape
            np.testing.assert_array_equal(image.affine, mask.affine)
            assert bool(mask.any()) == ("normal" not in case["case"])
            found.add(bool(mask.any()))
        assert found == {True, False}


def test_liver_lesions_lie_in_the_organ_mask_on_the_same_grid(mixed: Path) -> None:
    root = mixed / "liver_ct"
    for entry in listed(root)["test"]:
        image, mask, organ = (nib.load(root / entry[key]) for key in ("image", "label", "organ"))
        np.testing.assert_array_equal(image.affine, organ.affine)
        assert np.asarray(organ.dataobj).any()
        assert not (np.asarray(mask.dataobj) & ~np.asarray(organ.dataobj)).any()
        assert image.get_data_dtype() == np.int16
        assert image.header.get_xyzt_units()[0] == "mm"


def test_pictures_are_grey_with_white_lesions(mixed: Path) -> None:
    root = mixed / "retina_oct"
    for entry in listed(root)["test"]:
        with Image.open(root / entry["image"]) as image, Image.open(root / entry["label"]) as mask:
            assert image.mode == mask.mode == "L"
            assert image.size == mask.size == RETINA
            assert set(np.unique(np.asarray(mask))) <= {0, 255}


def test_mixed_datalist_holds_every_study_with_its_modality_and_name(mixed: Path) -> None:
    datalist = listed(mixed)
    for section, count in zip(SECTIONS, (2, 3, 3), strict=True):
        entries = datalist[section]
        assert Counter(entry["modality"] for entry in entries) == dict.fromkeys(MODALITIES, count)
        for entry in entries:
            assert entry["image"].startswith(f"{entry['modality']}/")
            assert ("organ" in entry) == (entry["modality"] == "liver_ct")
            assert not {"organ"} & set(entry) or (mixed / entry["organ"]).is_file()
    cases = find_cases(mixed)
    assert len(cases) == len({case["case"] for case in cases}) == 24
    assert "brain_mri_train_000" in {case["case"] for case in cases}
    modalities = {entry["case"]: entry["modality"] for s in SECTIONS for entry in datalist[s]}
    assert all(case["case"].startswith(modalities[case["case"]]) for case in cases)


def test_every_study_of_the_mixed_cohort_can_be_prepared(mixed: Path) -> None:
    for entry in listed(mixed)["test"]:
        prepare = preprocessing(MODALITIES[entry["modality"]], mask_key="label")
        paths = {key: str(mixed / entry[key]) for key in ("image", "label")}
        sample = prepare({"case": entry["case"], **paths})
        inside = sample["image"] > 0
        assert 0.2 < inside.float().mean() <= 1.0
        assert sample["label"].shape == sample["image"].shape
        assert bool(inside[sample["label"] > 0].all())


def test_retina_volumes_are_found_and_prepared(volumes: Path) -> None:
    cases = find_cases(volumes, "val")
    assert len(cases) == 3
    prepare = preprocessing(MODALITIES["retina_oct"], mask_key="label")
    for case in cases:
        sample = prepare(dict(case))
        assert tuple(sample["image"].shape) == (1, 64, 48, 3)
        bscan = sample["image"][0, :, :, 1].T  # rows are depth
        assert bscan[:6].mean() < 0.2 < bscan[28:36].mean()


def test_cohort_is_reproducible_and_another_seed_gives_other_eyes(
    mixed: Path, tmp_path: Path
) -> None:
    few = {"train": 1, "val": 0, "test_normal": 0, "test_lesion": 0, "progress": False}
    again, other = (
        write_retina_cohort(tmp_path / str(seed), shape=RETINA, seed=seed, **few) for seed in (0, 1)
    )
    first, second, third = (
        (root / "train/train_000.png").read_bytes() for root in (mixed / "retina_oct", again, other)
    )
    assert first == second != third


@pytest.mark.parametrize("write", WRITERS)
def test_folder_that_holds_something_is_refused(write: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures or volumes"):
        write_retina_cohort(tmp_path / "x", form="movies")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_monai_reads_the_mixed_datalist(mixed: Path) -> None:
    from monai.data.decathlon_datalist import load_decathlon_datalist

    entries = load_decathlon_datalist(mixed / "datalist.json", True, "test")
    assert all(Path(entry[key]).is_file() for entry in entries for key in ("image", "label"))
