"""Which studies are trained on and which are held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.data.splits import training_splits
from mcmiad_monai.data.volumes import CaseError


def touch(root: Path, *names: str) -> Path:
    """Create empty files; finding goes by names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def folder_of(root: Path, count: int) -> Path:
    return touch(root, *(f"c{i:02d}.nii.gz" for i in range(count)))


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [case["case"] for case in cases]


def test_validation_split_of_the_source_is_used_whole(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.nii", "train/b.nii", "val/c.nii", "val/d.nii", "test/e.nii")
    for fraction in (0.1, 0.9):
        train, val = training_splits(tmp_path, fraction=fraction)
        assert (names(train), names(val)) == (["a", "b"], ["c", "d"])


def test_validation_split_of_a_datalist_is_used(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "c.nii")
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": ["a.nii", "b.nii"], "validation": ["c.nii"]}))
    train, val = training_splits(path)
    assert (names(train), names(val)) == (["a", "b"], ["c"])


def test_source_without_validation_holds_out_whole_cases(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 20)
    train, val = training_splits(folder, fraction=0.25)
    assert (len(train), len(val)) == (15, 5)
    assert sorted(names(train) + names(val)) == [f"c{i:02d}" for i in range(20)]


def test_test_split_is_never_trained_on_nor_validated_on(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/a{i}.nii" for i in range(6)), "test/b.nii", "test/c.nii")
    train, val = training_splits(tmp_path)
    assert len(val) == 1
    assert sorted(names(train) + names(val)) == [f"a{i}" for i in range(6)]


def test_datalist_without_validation_holds_out_of_its_training(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.nii" for i in range(5)), "t.nii")
    path = tmp_path / "dataset.json"
    content = {"training": [f"{i}.nii" for i in range(5)], "test": ["t.nii"]}
    path.write_text(json.dumps(content))
    train, val = training_splits(path, fraction=0.4)
    assert (len(train), len(val)) == (3, 2)
    assert "t" not in names(train + val)


def test_anomalous_images_of_a_class_tree_are_not_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, *(f"good/{i}.png" for i in range(5)), "Ungood/x.png")
    train, val = training_splits(tmp_path)
    assert not any(case["anomalous"] for case in train + val)
    assert sorted(names(train + val)) == ["0", "1", "2", "3", "4"]


def test_seed_decides_and_repeats_the_choice(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 20)
    chosen = {seed: names(training_splits(folder, seed=seed)[1]) for seed in range(5)}
    assert names(training_splits(folder, seed=3)[1]) == chosen[3]
    assert len({tuple(held_out) for held_out in chosen.values()}) > 1


def test_choice_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    first, second = (folder_of(tmp_path / name, 20) for name in ("here", "there"))
    assert names(training_splits(first)[1]) == names(training_splits(second)[1])


def test_errors_are_not_taken_for_a_missing_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.nii", "train/b.nii", "val/c/flair.nii", "val/c/t1.nii")
    with pytest.raises(CaseError, match="image_name"):
        training_splits(tmp_path)


def test_missing_training_split_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "val/a.nii", "test/b.nii")
    with pytest.raises(CaseError, match="no train split"):
        training_splits(tmp_path)


def test_single_study_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="at least 2"):
        training_splits(folder_of(tmp_path, 1))
