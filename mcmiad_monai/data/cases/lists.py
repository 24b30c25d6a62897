"""Cases of a table of paths: CSV, TSV or Parquet, read row by row."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcmiad_monai.data.cases.datalist import entry_of, files_of
from mcmiad_monai.data.cases.names import (
    Case,
    CaseError,
    MissingSplitError,
    listing,
    plain_name,
)
from mcmiad_monai.data.cases.patients import with_patients
from mcmiad_monai.files.formats import LIST_SUFFIXES
from mcmiad_monai.modality import modality_of_dicom

#: Columns that have the path of the image; the first of them that is there.
IMAGE_COLUMNS = ("image", "path")
#: Columns that are read where they are there, as the keys of an entry of a datalist.
MORE_COLUMNS = ("case", "patient", "modality", "organ", "label", "anomalous")
#: Values of the columns that may say whether an image is anomalous.
FLAGS = {"0": False, "1": True, "false": False, "true": True}
#: Rows in memory.
ROWS = 1000


def is_list(path: Path) -> bool:
    """Whether a file is a table of paths, by its name."""
    return path.suffix.lower() in LIST_SUFFIXES


def read_list(path: Path, split: str = "all") -> Iterator[Case]:
    """Cases of a table, in its order; those whose files do not exist are ``refused``.

    Rows are read as they are needed, and memory grows by some 200 bytes a row. Names are unique
    with a column ``case`` only (see `names_cases`); else they are those of the files.

    Parameters
    ----------
    path : Path
        A file with a column ``image`` or ``path``, relative to its folder; ``case``, ``patient``,
        ``modality``, ``organ``, ``label`` and ``anomalous`` are read as in a datalist. A modality
        may be that of a DICOM header, as MR.
    split : {"train", "val", "test", "all"}
        A table has no splits: it is a ``train`` as well as a ``test`` split, whole.

    Yields
    ------
    dict
        See ``find_cases``.

    Raises
    ------
    CaseError
        If the table cannot be read, has no column of images, no rows, an empty path, two images
        of one name or two names for one image.
    """
    if split == "val":
        raise MissingSplitError(
            f"{path} has no validation split: a table has no splits. List the studies in a "
            "datalist (.json) with a list under 'validation'."
        )
    seen = _Seen(path)
    row = 0
    for row, fields in enumerate(_rows(path), 1):
        if not fields.get("image"):
            raise CaseError(f"{path} has no path in row {row}. Fill it in, or remove the row.")
        if (flag := fields.get("anomalous")) and flag.lower() not in FLAGS:
            raise CaseError(f"{path} has anomalous = {flag!r} in row {row}; 0 or 1 is needed.")
        case = entry_of(path, {key: _value(key, text) for key, text in fields.items() if text})
        if fields.get("case"):
            case["case"] = plain_name(case["case"])
        if not seen.before(row, case, named="case" in fields):
            missing = [file for file in files_of(case) if not file.exists()]
            if missing:
                case["refused"] = (
                    f"{listing(missing)} does not exist, of row {row} of {path.name}: {missing[0]}"
                )
            yield from with_patients([case], path)
    if not row:
        raise CaseError(f"{path} lists no studies: it has no rows below its columns.")


class _Seen:
    """Names and images of the rows before, as digests of eight bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: set[int] = set()
        self.name_of: dict[int, int] = {}

    def before(self, row: int, case: Case, *, named: bool) -> bool:
        """Whether a row repeats one; a name that the table gives must be of one image."""
        name, image = _digest(case["case"]), _digest(case["image"])
        if image in self.name_of:
            if self.name_of[image] != name:
                raise CaseError(
                    f"{self.path} lists {case['image']} in row {row} for the second time, under "
                    f"another name, {case['case']!r}. A study has one row."
                )
            return True
        if named and name in self.names:
            raise CaseError(
                f"{self.path} has the name {case['case']!r} in row {row} for a second image. A "
                "name is of one study: change it, or leave the column out."
            )
        self.names.add(name)
        self.name_of[image] = name
        return False


def _digest(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big"
    )


def _value(key: str, text: str) -> Any:
    """A cell as the entry of a datalist has it."""
    if key in ("label", "anomalous"):
        return FLAGS.get(text.lower(), text)
    return (modality_of_dicom(text) or text) if key == "modality" else text


def names_cases(path: Path) -> bool:
    """Whether a table has a column of names.

    Raises
    ------
    CaseError
        If it cannot be read, or has no column of images.
    """
    with _opened(path) as (connection, source):
        return "case" in _columns(path, connection, source)


def _rows(path: Path) -> Iterator[dict[str, str | None]]:
    """Rows of a table, the known columns as text."""
    with _opened(path) as (connection, source):
        columns = _columns(path, connection, source)
        chosen = ", ".join(f"CAST({_quoted(name)} AS VARCHAR)" for name in columns.values())
        cursor = connection.execute(f"SELECT {chosen} FROM {source}", [_literal(path)])
        while rows := cursor.fetchmany(ROWS):
            for row in rows:
                yield dict(zip(columns, row, strict=True))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, str]]:
    """A connection, and what a table is to it."""
    import duckdb

    is_parquet = path.suffix.lower() == ".parquet"
    # all is text: "007" is no number
    source = "read_parquet(?)" if is_parquet else "read_csv(?, all_varchar = true, header = true)"
    with duckdb.connect() as connection:
        try:
            yield connection, source
        except duckdb.Error as error:
            reason = str(error).strip().partition("\n")[0]
            raise CaseError(
                f"{path} cannot be read as {'Parquet' if is_parquet else 'CSV in UTF-8'}: {reason}"
            ) from error


def _columns(path: Path, connection: Any, source: str) -> dict[str, str]:
    """Key of an entry → column of the table."""
    described = connection.execute(f"DESCRIBE SELECT * FROM {source}", [_literal(path)]).fetchall()
    found = [str(column[0]) for column in described]
    by_name = {name.strip().lower(): name for name in reversed(found)}
    image = next((by_name[name] for name in IMAGE_COLUMNS if name in by_name), None)
    if image is None:
        raise CaseError(
            f"{path} has no column {' or '.join(IMAGE_COLUMNS)}; it has {', '.join(found)}. The "
            "first line of a CSV file names its columns."
        )
    return {"image": image, **{key: by_name[key] for key in MORE_COLUMNS if key in by_name}}


def _literal(path: Path) -> str:
    """A path whose ``*`` and ``[`` stand for themselves."""
    return glob.escape(str(path))


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
