"""Reading the two tables of a comparison of groups: scores of studies, and their attributes."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Columns of the attributes with a meaning of their own.
ROLES = ("case", "patient", "anomalous")
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")
#: Files beside a table of scores that can hold the model's thresholds.
REPORTS = {"scores.csv": ("scores.json",), "studies.csv": ("stress.json", "metrics.json")}
Table = list[dict[str, str]]


class SubgroupError(ValueError):
    """A table is not as it has to be."""


@dataclass(frozen=True)
class Study:
    """A study with its score and its label."""

    case: str
    patient: str
    score: float
    anomalous: bool


#: By case, its attributes and ROLES by the name of the column.
Attributes = dict[str, dict[str, str]]


def read_attributes(path: str | Path) -> Attributes:
    """Read attributes, one line a case."""
    table = _read_csv(path)
    if not set(table[0]) - set(ROLES):
        raise SubgroupError(
            f"{path} has no attribute; beside {', '.join(ROLES)} at least one column such as "
            "scanner, site, sex or age is needed."
        )
    _refuse_repeated(path, table)
    return {row["case"]: row for row in table}


def read_studies(path: str | Path, attributes: Attributes) -> tuple[list[Study], list[str]]:
    """Read scores, and names of the cases that have none.

    The columns ``patient`` and ``anomalous`` of the attributes override those of the scores.
    """
    is_json = Path(path).suffix.lower() == ".json"
    table = _one_row_a_study(path, _read_scores_json(path) if is_json else _read_csv(path))
    if not set(attributes) & {row["case"] for row in table}:
        raise SubgroupError(
            f"no case of {path} has attributes: it has {_some([r['case'] for r in table])}, and "
            f"the attributes are of {_some(list(attributes))}. Use the names of the cases as "
            "`mcmiad cases` lists them."
        )
    # evaluations of older versions give 0 to a study of which no slice was looked at
    scored = [row for row in table if row["volume_score"] and row.get("slices") != "0"]
    unscored = sorted({row["case"] for row in table} - {row["case"] for row in scored})
    studies, unknown = [], []
    for row in scored:
        own = {**row, **{k: v for k, v in attributes.get(row["case"], {}).items() if v}}
        truth = _truth(own, path)
        if truth is None:
            unknown.append(row["case"])
            continue
        patient = own.get("patient") or row["case"]
        studies.append(Study(row["case"], patient, _number(row, "volume_score", path), truth))
    if unknown:
        raise SubgroupError(
            f"it is not known whether {_some(unknown)} are anomalous: {path} does not say. Add a "
            "column anomalous (0 or 1) to the attributes, or use studies.csv of an evaluation."
        )
    return studies, unscored


def find_threshold(path: str | Path) -> float | None:
    """Volume threshold of the model, from the scores or a report beside them; None without one."""
    source = Path(path)
    names = [source.name] if source.suffix.lower() == ".json" else REPORTS.get(source.name, ())
    report = next((p for name in names if (p := source.with_name(name)).is_file()), None)
    if report is None:
        return None
    threshold = float(_read_json(report).get("calibration", {}).get("volume_threshold", math.inf))
    return threshold if math.isfinite(threshold) else None


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SubgroupError(f"{path} is not JSON ({error}); write it anew.") from error
    if not isinstance(content, dict):
        raise SubgroupError(f"{path} holds a {type(content).__name__}; an object is needed.")
    return content


def _read_scores_json(path: str | Path) -> Table:
    """Studies of ``scores.json``; those that failed have no score."""
    content = _read_json(_existing(path, "scores.json of an inference"))
    if not isinstance(content.get("scores"), list):
        raise SubgroupError(
            f"{path} has {sorted(content)[:5]} and no list of scores; scores.json of an "
            "inference, or studies.csv of an evaluation or stress test, is needed."
        )
    table = [
        {
            "case": str(study["case"]),
            "volume_score": "" if (score := study["volume_score"]) is None else repr(score),
            "slices": str(study["slices_scored"]),
        }
        for study in content["scores"]
    ]
    return table + [{"case": name, "volume_score": ""} for name in content.get("failed", {})]


def _read_csv(path: str | Path) -> Table:
    """Lines of a CSV file with a column ``case``, without surrounding blanks."""
    source = _existing(path, "a CSV file")
    with source.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin with a mark
        reader = csv.DictReader(file, skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        lines = list(reader)
    if "case" not in names or len(set(names)) < len(names):
        hint = " The columns seem to be separated by semicolons." if ";" in "".join(names) else ""
        raise SubgroupError(
            f"{source} has the columns {names}; one column case, and no name twice, separated by "
            f"commas, are needed.{hint}"
        )
    if not lines:
        raise SubgroupError(f"{source} has no line below its header; one for each case is needed.")
    ragged = [n for n, line in enumerate(lines, 2) if None in line or None in line.values()]
    if ragged:
        raise SubgroupError(
            f"{source} has more or fewer values than columns in its lines {ragged[:5]}; put values "
            "that hold a comma between quotation marks."
        )
    return [{name: value.strip() for name, value in line.items()} for line in lines]


def _existing(path: str | Path, needed: str) -> Path:
    if not Path(path).is_file():
        raise SubgroupError(f"{path} does not exist; {needed} is needed.")
    return Path(path)


def _one_row_a_study(path: str | Path, table: Table) -> Table:
    """One row a study; an inference writes one for each slice."""
    columns = list(table[0]) if table else []
    if "volume_score" not in columns:
        raise SubgroupError(
            f"{path} has the columns {columns}; volume_score is needed, as in studies.csv of an "
            "evaluation or scores.csv of an inference."
        )
    if "slice_score" in columns:
        # `anomalous` is the verdict on a slice there, not the truth
        pairs = dict.fromkeys((row["case"], row["volume_score"]) for row in table)
        table = [{"case": case, "volume_score": score} for case, score in pairs]
    _refuse_repeated(path, table)
    return table


def _refuse_repeated(path: str | Path, table: Table) -> None:
    counts = Counter(row["case"] for row in table)
    twice = [case for case, count in counts.items() if count > 1]
    if twice or "" in counts:
        raise SubgroupError(
            f"{path} has {'an empty case' if '' in counts else f'{_some(twice)} more than once'}; "
            "one line with a name of its own for each study is needed."
        )


def _truth(row: Mapping[str, str], path: str | Path) -> bool | None:
    """Whether a study is anomalous; None if not known."""
    given = row.get("anomalous", "").lower()
    if given and given not in TRUE + FALSE:
        raise SubgroupError(f"case {row['case']} has {given!r} for anomalous; 0 or 1 is needed.")
    if not given and row.get("anomalous_slices"):
        return _number(row, "anomalous_slices", path) > 0
    return given in TRUE if given else None


def _number(row: Mapping[str, str], column: str, path: str | Path) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SubgroupError(
            f"{path} has {row[column]!r} for {column} of {row['case']}; a number is needed."
        )
    return number


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
