"""Names of studies: each one that of a folder, no two the same, good ones as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from case_files import names, touch, write_list

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.data.cases.names import NAME_BYTES, plain_name
from mcmiad_monai.data.cases.splits import find_studies

GOOD = ("p_07", "head.1.2", "Müller 3", "case#3", "脑部", "a-b", "=1+1", "x" * NAME_BYTES, "a.")


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_stays_as_it_is(name: str) -> None:
    assert plain_name(name) == name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("../../escaped", "escaped"),
        ("/etc/cron.d/x", "etc_cron.d_x"),
        ("..\\..\\x", "x"),
        ("a/b", "a_b"),
        (".hidden", "hidden"),
        ("..", "study"),
        (".", "study"),
        ("", "study"),
        (" ", "study"),
        ("a\n12 studies done\x1b[2J", "a_12 studies done_[2J"),
        ("a\u202egnp", "a_gnp"),
        ("a\udc80", "a_"),
        ("scores.json", "study_scores.json"),
    ],
)
def test_a_name_that_no_folder_can_have_becomes_one(name: str, plain: str) -> None:
    assert plain_name(name) == plain
    assert plain_name(plain) == plain


@pytest.mark.parametrize("letter", ["x", "é", "脑"])
def test_long_names_fit_a_file_system_and_stay_different(letter: str, tmp_path: Path) -> None:
    found = [plain_name(letter * 300 + end) for end in "ab"]
    assert found[0] != found[1]
    for name in found:
        assert plain_name(name) == name
        (tmp_path / f".12345678.{name}_heatmap.nii.gz").touch()


def test_names_of_a_datalist_stay_different_once_they_are_plain(tmp_path: Path) -> None:
    listed = ["../a", "/a", "a", "a_2", "..", "", "n" * 300, "n" * 300]
    touch(tmp_path, *(f"{k}.nii.gz" for k in range(len(listed))))
    entries = [{"image": f"{k}.nii.gz", "case": name} for k, name in enumerate(listed)]
    found = names(find_cases(write_list(tmp_path / "datalist.json", test=entries), "test"))
    assert found[:4] == ["a", "a_2", "a_3", "a_2_2"]
    assert len(set(found)) == len(listed)
    assert all(plain_name(name) == name for name in found)


def test_files_of_one_stem_have_relative_names_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "p1.nii", "p1.nii.gz", "eye1.png", "eye1.jpg")
    assert sorted(names(find_cases(tmp_path))) == ["eye1", "eye1_2", "p1", "p1_2"]


def test_studies_of_several_sources_never_share_a_name(tmp_path: Path) -> None:
    touch(tmp_path, "one/p1.nii", "two/p1.nii", "two#/p1.nii")
    sources = [tmp_path / name for name in ("one", "two", "two#")]
    found = find_studies(sources, modality="brain_mri")
    assert names(found) == ["one_p1", "two_p1", "two#_p1"]
