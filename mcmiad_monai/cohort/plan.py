"""The studies of a cohort, found once: a line each, in the order in which they are numbered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

from mcmiad_monai.cohort.identity import absolute, write_once
from mcmiad_monai.cohort.ledger import PLAN, RECORDS, RESULTS, Study
from mcmiad_monai.data.cases.names import CaseError, plain_name
from mcmiad_monai.files.writing import only_writer

#: Names of the cohort's own folders, which no study's folder may take.
OWN_NAMES = frozenset({RECORDS, RESULTS, "studies", "locks"})
#: What a study of the plan has beside its number and its name.
KNOWN = ("image", "patient", "modality", "organ", "refused")
#: Studies whose files are looked at to know how much room all results need.
SAMPLE = 32


def make_plan(out: Path, cases: Iterable[Mapping[str, Any]]) -> int:
    """Write the plan, unless it is there.

    Parameters
    ----------
    out : path
        Folder of the cohort.
    cases : iterable of dict
        As `studies_of` gives them; not asked for where the plan is there.

    Returns
    -------
    int
        How many studies it has.

    Raises
    ------
    CaseError
        If there is none.
    """
    path = out / PLAN
    with only_writer(out):  # the tasks of an array begin together, and one looks for all
        write_once(path, _lines(cases))
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def read_plan(out: Path) -> Iterator[Study]:
    """The studies of the plan."""
    with (out / PLAN).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _lines(cases: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    taken: set[str] = set()
    number = -1
    for number, case in enumerate(cases):
        name = _free_name(str(case["case"]), taken)
        yield json.dumps({"number": number, "case": name, **_known(case)}) + "\n"
    if number < 0:
        raise CaseError("no studies were found.")


def _free_name(wanted: str, taken: set[str]) -> str:
    """A name that a folder can have and no other study has, whether or not case counts."""
    plain = plain_name(wanted)
    plain = f"study_{plain}" if plain.lower() in OWN_NAMES else plain
    names = (plain_name(f"{plain}_{k}") if k > 1 else plain for k in count(1))
    name = next(name for name in names if name.lower() not in taken)
    taken.add(name.lower())
    return name


def _known(case: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: case[key] for key in KNOWN if case.get(key) is not None}
    known |= {key: absolute(known[key]) for key in ("image", "organ") if key in known}
    return known


def room_needed(out: Path, studies: int) -> int:
    """Bytes that the results of so many studies will take, roughly; the first ones are asked."""
    sizes = [_size(str(study["image"])) for study in islice(read_plan(out), SAMPLE)]
    return studies * sum(sizes) // max(1, len(sizes))


def _size(image: str) -> int:
    """Bytes of a study's files; 0 where they are elsewhere or cannot be looked at."""
    try:
        path = Path(image)
        if path.is_dir():  # of DICOM, two bytes a voxel; results are packed
            return sum(file.stat().st_size for file in path.iterdir()) // 2
        return path.stat().st_size // (1 if image.endswith("z") else 2)
    except OSError:
        return 0
