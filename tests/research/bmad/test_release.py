"""The patients that BMAD publishes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcmiad_monai.data.cases.find import CaseError
from mcmiad_monai.research.bmad.brain import release_roles
from mcmiad_monai.research.bmad.layout import Pair
from mcmiad_monai.research.bmad.release import BRAIN_ILL, brain_fit, good_patients, number_of
from mcmiad_monai.research.bmad.sets import find_bmad

PUBLISHED = Path(__file__).parents[4] / "shared" / "bmad" / "brain_patients.json"


def test_published_patients_are_those_of_the_release() -> None:
    published = good_patients()
    counts = {folder: len(numbers) for folder, numbers in published.items()}
    assert counts == {"train/good": 424, "valid/good": 39, "test/good": 162}
    assert len(frozenset().union(*published.values())) == 424 + 39 + 162
    assert max(max(numbers) for numbers in published.values()) <= 1666  # BraTS2021's last patient


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published list is not beside the project")
def test_published_patients_equal_the_list_that_bmad_publishes() -> None:
    listed = json.loads(PUBLISHED.read_text())
    for folder, numbers in good_patients().items():
        assert numbers == {int(number) for number in listed[folder.replace("/", "_")]}


def named_pairs(names: list[str]) -> list[Pair]:
    return [Pair(name, Path(f"{name}_flair.nii.gz"), Path(f"{name}_seg.nii.gz")) for name in names]


def test_whole_brats_gives_the_patients_of_the_release() -> None:
    good = frozenset().union(*good_patients().values())
    ill = [number for number in range(1667) if number not in good][:BRAIN_ILL]
    pairs = named_pairs([f"BraTS2021_{number:05d}" for number in sorted({*good, *ill})])
    roles, notes = release_roles(pairs, 0, {})
    for folder, numbers in good_patients().items():
        assert {number_of(n) for n, role in roles.items() if role == folder} == numbers
    assert Counter(roles.values())["valid/Ungood"] == 11
    assert Counter(roles.values())["test/Ungood"] == 615
    assert len(notes) == 1
    assert "11 of 626 anomalous patients, drawn with seed 0" in notes[0]
    assert "cannot be reproduced" in notes[0]
    assert roles == release_roles(pairs[::-1], 0, {})[0] != release_roles(pairs, 1, {})[0]


def test_folder_without_patients_of_brats2021_is_refused() -> None:
    with pytest.raises(CaseError, match=r"none of the 2 patients is named as in BraTS2021.*clean"):
        release_roles(named_pairs(["P_001", "BraTS-GLI-00003-000"]), 0, {})


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("BraTS2021_00003", 3),
        ("00003", 3),
        ("brats2021_training_00495", 495),
        ("BraTS20_Training_003", None),
        ("BraTS-GLI-00003-000", None),
        ("P_00003", None),
        ("100003", None),
    ],
)
def test_number_is_read_from_names_of_brats2021_alone(name: str, number: int | None) -> None:
    assert number_of(name) == number


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(path)


def test_tree_tells_by_its_names_whether_it_is_the_release(tmp_path: Path) -> None:
    root = tmp_path / "Brain_AD"
    for folder, numbers in good_patients().items():
        for number in numbers:
            picture(root / folder / "img" / f"{number:05d}_60.png")
    good = frozenset().union(*good_patients().values())
    ill = [number for number in range(1667) if number not in good][:BRAIN_ILL]
    for k, number in enumerate(ill):
        name = f"valid/Ungood/img/{number:05d}_70" if k < 11 else f"test/Ungood/img/{number:05d}_68"
        picture(root / f"{name}.png")

    def fit() -> str:
        return brain_fit(find_bmad(tmp_path)["brain"])

    assert fit().startswith("brain fits the release")
    picture(root / f"test/Ungood/img/BraTS2021_{ill[-1]:05d}_69.png")
    picture(root / "test/Ungood/img/00025_60.png")
    (root / "train/good/img/00003_60.png").rename(root / "train/good/img/00006_60.png")
    assert "train/good has 423 of the 424 published patients and 1 others" in fit()
    assert "test/Ungood has 616 patients, the release 615" in fit()
    assert "1 patients of Ungood are good ones" in fit()
    assert "1 images are of slices that the release does not take" in fit()
    picture(root / "test/good/img/healthy_60.png")
    assert "1 of 1254 file names hold no number of BraTS2021" in fit()
