"""Tables of paths: CSV and Parquet are one source, and what is wrong is told by its row."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from mcmiad_monai.data.cases import lists
from mcmiad_monai.data.cases.find import CaseError, find_cases
from mcmiad_monai.data.cases.lists import read_list
from mcmiad_monai.data.cases.names import MissingSplitError
from mcmiad_monai.data.cases.splits import training_splits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Studies a, b and c, each with a FLAIR; a table is to lie beside them."""
    for name in "abc":
        (tmp_path / name).mkdir()
        for file in ("flair.nii.gz", f"{name}.nii.gz", "mask.nii.gz"):
            (tmp_path / name / file).touch()
    return tmp_path


def _table(folder: Path, text: str, name: str = "studies.csv") -> Path:
    """A table; one of another suffix is made from the CSV."""
    path = folder / name
    if path.suffix == ".parquet":
        source = _table(folder, text, "source.csv")
        read = f"read_csv('{source}', all_varchar = true, header = true)"
        duckdb.execute(f"COPY (SELECT * FROM {read}) TO '{path}' (FORMAT parquet)")
    else:
        path.write_text(text, encoding="utf-8", newline="")
    return path


FULL = """case,image,patient,modality,organ,label,more
one,a/flair.nii.gz,007,MR,a/mask.nii.gz,b/mask.nii.gz,x
two,b/flair.nii.gz,,brain_mri,,1,y
three,c/flair.nii.gz,008,,,false,z
"""


@pytest.mark.parametrize("name", ["l.csv", "l.parquet", "l [1]*.csv", "L.CSV"])
def test_row_is_read_as_the_entry_of_a_datalist(folder: Path, name: str) -> None:
    one, two, three = find_cases(_table(folder, FULL, name))
    assert one == {
        "case": "one",
        "image": str(folder / "a" / "flair.nii.gz"),
        "label": str(folder / "b" / "mask.nii.gz"),
        "organ": str(folder / "a" / "mask.nii.gz"),
        "patient": "007",
        "modality": "brain_mri",
        "anomalous": None,
    }
    assert (two["modality"], two["anomalous"], two["label"]) == ("brain_mri", True, None)
    assert three["anomalous"] is False
    assert "modality" not in three


@pytest.mark.parametrize(
    "text",
    [
        "PATH\na/a.nii.gz\nb/b.nii.gz\n",
        "\ufeffpath;n\na/a.nii.gz;1\nb/b.nii.gz;2\n",
        "id\tpath\n1\ta/a.nii.gz\n2\tb/b.nii.gz\n",
        'n,path\r\n1,"a/a.nii.gz"\r\n2,b/b.nii.gz',
    ],
)
def test_separators_marks_and_capitals_make_no_difference(folder: Path, text: str) -> None:
    assert [case["case"] for case in find_cases(_table(folder, text))] == ["a", "b"]


def test_names_that_the_files_share_are_told_apart(folder: Path) -> None:
    table = _table(folder, "path\na/mask.nii.gz\nb/mask.nii.gz\nc/flair.nii.gz\n")
    assert [case["case"] for case in find_cases(table)] == ["a_mask", "b_mask", "c"]


def test_missing_files_refuse_their_studies_alone(folder: Path) -> None:
    text = "image,label\na/flair.nii.gz,\nd/flair.nii.gz,\nb/flair.nii.gz,b/no.nii.gz\n"
    first, second, third = find_cases(_table(folder, text))
    assert "refused" not in first
    assert "flair.nii.gz does not exist, of row 2 of studies.csv" in second["refused"]
    assert "no.nii.gz does not exist, of row 3" in third["refused"]
    with pytest.raises(CaseError, match=r"row 1 of studies.csv.* 1 more like it"):
        find_cases(_table(folder, "image\nx.nii\ny.nii\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,case\na/a.nii.gz,a\n", r"no column image or path; it has file, case"),
        ("a/a.nii.gz\nb/b.nii.gz\n", r"no column image or path; it has a/a.nii.gz\. The first"),
        ("image\n", "lists no studies"),
        ("case,image\nx,a/a.nii.gz\ny,\n", "no path in row 2"),
        ("case,image\nx,a/a.nii.gz\nx,b/b.nii.gz\n", "name 'x' in row 2 for a second image"),
        ("case,image\nx/y,a/a.nii.gz\nx_y,b/b.nii.gz\n", "name 'x_y' in row 2 for a second image"),
        ("case,image\nx,a/a.nii.gz\ny,a/a.nii.gz\n", "row 2 for the second time, under .* 'y'"),
        ("image,anomalous\na/a.nii.gz,perhaps\n", "anomalous = 'perhaps' in row 1; 0 or 1"),
        ("", "no column image"),
        # by itself DuckDB would leave these rows out
        ("path,n\na/a.nii.gz,1\nb,b.nii.gz,2\n", r"no column image or path; it has path,n\."),
        ("# all\npath,n\na/a.nii.gz,1\n", "no column image or path|cannot be read as CSV"),
    ],
)
def test_table_that_is_not_clear_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        find_cases(_table(folder, text))


def test_row_that_begins_like_a_comment_is_a_study(folder: Path) -> None:
    (folder / "#1.nii.gz").touch()
    table = _table(folder, "path,n\na/a.nii.gz,1\n#1.nii.gz,2\nb/b.nii.gz,3\n")
    assert [case["case"] for case in find_cases(table)] == ["a", "#1", "b"]


def test_damaged_parquet_is_refused(folder: Path) -> None:
    (folder / "x.parquet").write_text("no Parquet at all")
    with pytest.raises(CaseError, match=r"x.parquet cannot be read as Parquet"):
        find_cases(folder / "x.parquet")


def test_row_that_is_repeated_is_one_study(folder: Path) -> None:
    table = _table(folder, "case,image\nx,a/a.nii.gz\ny,b/b.nii.gz\nx,a/a.nii.gz\n")
    assert [case["case"] for case in read_list(table)] == ["x", "y"]


def test_rows_are_read_as_they_are_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "ROWS", 2)
    rows = "".join(f"{k},a/a.nii.gz\n" if k < 1 else f"{k},{k}.nii\n" for k in range(5))
    table = _table(folder, f"case,image\n{rows}7,\n")
    reading = read_list(table)
    assert [next(reading)["case"] for _ in range(4)] == ["0", "1", "2", "3"]
    with pytest.raises(CaseError, match="row 6"):
        list(reading)


def test_table_trains_and_keeps_patients_together(folder: Path) -> None:
    text = "case,path,patient\n1,a/a.nii.gz,p\n2,a/flair.nii.gz,p\n3,b/b.nii.gz,q\n"
    train, val = training_splits(_table(folder, text), fraction=0.5)
    assert {frozenset(c["case"] for c in side) for side in (train, val)} == {
        frozenset("12"),
        frozenset("3"),
    }
    with pytest.raises(MissingSplitError, match="a table has no splits"):
        find_cases(folder / "studies.csv", "val")
