"""Which studies are trained on and which are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from case_files import names, touch, write_list

from mcmiad_monai.data.cases.find import CaseError, MissingSplitError
from mcmiad_monai.data.cases.splits import find_studies, training_splits


def folder_of(root: Path, count: int) -> Path:
    return touch(root, *(f"c{i:02d}.nii.gz" for i in range(count)))


def test_validation_split_of_the_source_is_used_whole(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.nii", "train/b.nii", "val/c.nii", "val/d.nii", "test/e.nii")
    for fraction in (0.1, 0.9):
        train, val = training_splits(tmp_path, fraction=fraction)
        assert (names(train), names(val)) == (["a", "b"], ["c", "d"])


def test_datalist_is_divided_as_it_says_and_else_holds_out_of_its_training(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.nii" for i in range(5)), "t.nii")
    training = [f"{i}.nii" for i in range(5)]
    path = write_list(tmp_path / "dataset.json", training=training, test=["t.nii"])
    train, val = training_splits(path, fraction=0.4)
    assert (len(train), len(val)) == (3, 2)
    assert "t" not in names(train + val)
    write_list(path, training=training[:2], validation=training[2:3])
    assert [names(part) for part in training_splits(path)] == [["0", "1"], ["2"]]


def test_anomalous_images_of_a_class_tree_are_not_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, *(f"good/{i}.png" for i in range(5)), "Ungood/x.png")
    train, val = training_splits(tmp_path)
    assert not any(case["anomalous"] for case in train + val)
    assert sorted(names(train + val)) == ["0", "1", "2", "3", "4"]


def test_source_without_validation_holds_out_what_the_seed_decides(tmp_path: Path) -> None:
    folder, other = folder_of(tmp_path / "here", 20), folder_of(tmp_path / "there", 20)
    train, val = training_splits(folder, fraction=0.25)
    assert (len(train), len(val)) == (15, 5)
    assert sorted(names(train) + names(val)) == [f"c{i:02d}" for i in range(20)]
    chosen = {seed: names(training_splits(folder, seed=seed)[1]) for seed in range(5)}
    assert names(training_splits(other, seed=3)[1]) == chosen[3]
    assert len({tuple(held_out) for held_out in chosen.values()}) > 1


def test_errors_are_not_taken_for_a_missing_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.nii", "train/b.nii", "val/c/flair.nii", "val/c/t1.nii")
    with pytest.raises(CaseError, match="image_name"):
        training_splits(tmp_path)
    with pytest.raises(CaseError, match="no train split"):
        training_splits(touch(tmp_path / "other", "val/a.nii", "test/b.nii"))


def modalities(cases: list[dict[str, Any]]) -> dict[str, str]:
    return {case["case"]: case["modality"] for case in cases}


FOLDERS = [
    ("brain_mri", "liver_ct", "retina_oct"),
    ("Brain_AD", "Liver_AD", "Retina_RESC_AD"),
    ("Brain", "liver", "Retina_OCT2017_AD"),
    ("BRAIN_MRI", "LIVER", "retinal"),
]


@pytest.mark.parametrize("folders", FOLDERS, ids=lambda folders: folders[0])
def test_folders_named_after_modalities_are_taken_apart(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    brain, liver, retina = folders
    touch(tmp_path, f"{brain}/b.nii", f"{liver}/l.nii", f"{retina}/r.png")
    expected = {"b": "brain_mri", "l": "liver_ct", "r": "retina_oct"}
    assert modalities(find_studies(tmp_path, modality="unified")) == expected


def test_modality_is_that_of_a_folder_for_a_unified_model_alone(tmp_path: Path) -> None:
    touch(tmp_path / "plain", "knees/ct.nii", "a.nii")
    touch(tmp_path / "named", "brain_mri/b.nii", "liver_ct/l.nii")
    for folder, modality in (("plain", "unified"), ("named", "liver_ct")):
        cases = find_studies(tmp_path / folder, modality=modality)
        assert len(cases) == 2
        assert not any("modality" in case for case in cases)


def test_each_modality_has_its_own_splits(tmp_path: Path) -> None:
    touch(tmp_path, "brain_mri/train/a.nii", "brain_mri/val/b.nii", "brain_mri/test/c.nii")
    touch(tmp_path, "liver_ct/d.nii", "liver_ct/e.nii", "liver_ct/f.nii", "liver_ct/g.nii")
    touch(tmp_path, "Retina_RESC_AD/train/good/h.png", "Retina_RESC_AD/val/good/i.png")
    touch(tmp_path, "Retina_RESC_AD/val/Ungood/j.png", "Retina_RESC_AD/test/Ungood/k.png")
    test = find_studies(tmp_path, "test", modality="unified")
    assert sorted(names(test)) == ["c", "d", "e", "f", "g", "k"]
    train, val = training_splits(tmp_path, modality="unified", fraction=0.25)
    assert {"a", "h"} < set(names(train))
    assert {"b", "i", "j"} < set(names(val))
    # the liver has no split of its own: one of four is held out
    assert list(modalities(train).values()).count("liver_ct") == 3
    assert list(modalities(val).values()).count("liver_ct") == 1
    assert not {"c", "k"} & set(names(train + val))


def test_missing_split_of_one_modality_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "brain_mri/train/a.nii", "brain_mri/test/c.nii", "liver_ct/train/d.nii")
    with pytest.raises(MissingSplitError, match=r"liver_ct has no test split"):
        find_studies(tmp_path, "test", modality="unified")


def test_names_are_unique_over_modalities_and_splits(tmp_path: Path) -> None:
    for folder in ("brain_mri", "liver_ct"):
        touch(tmp_path / folder, "train/1.nii", "train/2.nii", "val/1.nii", "test/1.nii")
    every = find_studies(tmp_path, modality="unified")
    assert len(every) == len(set(names(every))) == 8
    train, val = training_splits(tmp_path, modality="unified")
    assert len(train + val) == len(set(names(train + val))) == 6
    for case in train + val:
        assert case["modality"] in case["image"]
        assert Path(case["image"]).parent.name == ("train" if case in train else "val")


def mixed_list(folder: Path) -> Path:
    touch(folder, *(f"{i}.nii" for i in range(12)))
    kinds = ["brain_mri"] * 8 + ["liver_ct"] * 4
    entries = [{"image": f"{i}.nii", "modality": kind} for i, kind in enumerate(kinds)]
    write_list(folder / "datalist.json", training=entries)
    return folder


@pytest.mark.parametrize("as_file", [True, False])
def test_datalist_tells_the_modality_of_each_study(tmp_path: Path, as_file: bool) -> None:
    source = mixed_list(tmp_path) / ("datalist.json" if as_file else "")
    cases = find_studies(source, "train", modality="unified")
    assert list(modalities(cases).values()) == ["brain_mri"] * 8 + ["liver_ct"] * 4
    for seed in range(5):
        train, val = training_splits(source, modality="unified", fraction=0.25, seed=seed)
        held_out = list(modalities(val).values())
        assert (held_out.count("brain_mri"), held_out.count("liver_ct")) == (2, 1)
        assert sorted(names(train + val), key=int) == [str(i) for i in range(12)]


def test_datalist_goes_before_the_names_of_folders(tmp_path: Path) -> None:
    touch(tmp_path, "brain_mri/a.nii", "brain_mri/b.nii", "liver_ct/c.nii")
    entries = [{"image": "brain_mri/a.nii", "modality": "liver_ct"}]
    write_list(tmp_path / "datalist.json", training=entries)
    assert modalities(find_studies(tmp_path, modality="unified")) == {"a": "liver_ct"}


def test_study_modality_is_that_of_every_study(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.nii" for i in range(4)))
    cases = find_studies(tmp_path, modality="unified", study_modality="liver_ct")
    assert set(modalities(cases).values()) == {"liver_ct"}
    train, val = training_splits(tmp_path, modality="unified", study_modality="retina_oct")
    assert set(modalities(train + val).values()) == {"retina_oct"}
    listed = mixed_list(tmp_path / "listed")
    cases = find_studies(listed, modality="unified", study_modality="brain_mri")
    assert set(modalities(cases).values()) == {"brain_mri"}


@pytest.mark.parametrize("wrong", ["unified", "liver", "MR"])
def test_unknown_study_modality_is_refused(tmp_path: Path, wrong: str) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    for find in (find_studies, training_splits):
        with pytest.raises(ValueError, match=rf"study_modality '{wrong}' is not known.*liver_ct"):
            find(tmp_path, modality="unified", study_modality=wrong)


def test_several_sources_are_one_cohort_without_a_name_or_an_image_twice(tmp_path: Path) -> None:
    touch(tmp_path, "old/a.nii.gz", "new/a.nii.gz", "new/b.nii.gz")
    sources = [tmp_path / "new", tmp_path / "old" / "a.nii.gz", tmp_path / "new" / "b.nii.gz"]
    assert names(find_studies(sources, modality="brain_mri")) == ["new_a", "b", "old_a"]


def test_image_name_chooses_a_sequence(tmp_path: Path) -> None:
    images = ["a_flair.nii.gz", "b_flair.nii.gz"]
    touch(tmp_path, *(f"{name[0]}/{name}" for name in (*images, "a_t1.nii.gz", "b_t1.nii.gz")))
    with pytest.raises(CaseError, match="image_name"):
        find_studies(tmp_path, modality="brain_mri")
    found = find_studies(tmp_path, modality="brain_mri", image_name="flair")
    train, val = training_splits(tmp_path, image_name="flair")
    assert [Path(case["image"]).name for case in found] == images
    assert sorted(Path(case["image"]).name for case in train + val) == images
