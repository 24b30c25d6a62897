"""Figures by scanner, site, sex or age, which show whether a model works equally well for all.

Scores come from the table of an evaluation or stress test (``studies.csv``) or of an inference
(``scores.csv``), attributes from a table of the user. Groups are often small, so every figure has
its counts and an interval, and a group that is too small for a conclusion has a warning.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mcmiad_monai.files.writing import write_csv, write_text
from mcmiad_monai.metrics.bootstrap import bootstrap_auroc
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.robustness.subgroup_tables import (
    ROLES,
    Attributes,
    Study,
    SubgroupError,
    find_threshold,
    read_attributes,
    read_studies,
)
from mcmiad_monai.research.tables import MISSING, markdown_table

logger = logging.getLogger(__name__)

#: Below these a group's figures say little.
FEWEST_NORMALS, FEWEST_ANOMALOUS = 20, 10
#: Years at which a band of the column ``age`` begins.
AGE_BANDS = (40, 60, 75)
#: A column of numbers with more distinct values is cut into quartiles; field strengths are not.
MOST_VALUES = 8
#: A column of text with more distinct values makes no groups: names, dates and numbers do not.
MOST_GROUPS = 20
NOT_GIVEN = "not given"
#: Of the intervals.
LEVEL = 0.95
NOTES = (
    "AUROC intervals are percentile bootstraps over patients. Intervals of rates are exact "
    "(Clopper–Pearson) and take studies for independent. Many groups are compared at once: some "
    "difference is to be expected by chance."
)


def subgroup_report(
    scores: str | Path,
    attributes: str | Path,
    *,
    out: str | Path,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Figures of every group of every attribute; writes ``subgroups.json``, ``.csv`` and ``.md``.

    Parameters
    ----------
    scores : path
        ``studies.csv`` of an evaluation or stress test, or ``scores.csv`` or ``scores.json`` of an
        inference, which does not know which studies are anomalous.
    attributes : path
        Columns: ``case``; attributes; optionally ``patient`` (whose studies are resampled
        together) and ``anomalous`` (0 or 1; goes before what the masks say). ``age`` is cut into
        bands (<40, 40–59, 60–74, ≥75), other columns of more than eight numbers into quartiles.
    out : path
        Folder.
    threshold : float, optional
        Volume threshold. By default that of the model, where the report beside the scores has it;
        without a finite one there are no rates.

    Returns
    -------
    dict
        What ``subgroups.json`` holds.

    Raises
    ------
    SubgroupError
        If a column is missing, a case stands twice, a value cannot be read, or the tables have no
        case in common.
    """
    table = read_attributes(attributes)
    studies, unscored = read_studies(scores, table)
    limit = find_threshold(scores) if threshold is None else threshold
    limit = limit if limit is not None and math.isfinite(limit) else None
    groups, skipped = group_studies(studies, table)
    rows = [
        {"attribute": attribute, "group": group, **figures(members, limit)}
        for attribute, group, members in groups
    ]
    report = {
        "rows": rows,
        "volume_threshold": limit,
        "level": LEVEL,
        "notes": NOTES,
        "undefined": "null: one class only, no study, or no threshold",
        "columns_without_groups": skipped,
        "cases_without_attributes": [s.case for s in studies if s.case not in table],
        "cases_without_scores": sorted(set(table) - {s.case for s in studies} - set(unscored)),
        "cases_not_scored": unscored,
        "measured_with": produced_with(),
    }
    folder = Path(out)
    write_text(folder / "subgroups.json", json.dumps(report, indent=1))
    write_csv(folder / "subgroups.csv", rows)
    write_text(folder / "subgroups.md", markdown(report))
    for row in rows:
        if row["warning"]:
            logger.warning("%s %s: %s", row["attribute"], row["group"], row["warning"])
    return report


def group_studies(
    studies: Sequence[Study], attributes: Attributes
) -> tuple[list[tuple[str, str, list[Study]]], dict[str, str]]:
    """Attribute, group and members, all studies first; and why a column makes no groups.

    Studies without attributes are in the first group alone.
    """
    groups = [("all", "all", list(studies))]
    skipped: dict[str, str] = {}
    known = [study for study in studies if study.case in attributes]
    for column in (name for name in next(iter(attributes.values())) if name not in ROLES):
        values = [attributes[study.case][column] for study in known]
        labels, order = labels_of(column, values)
        if len(order) > MOST_GROUPS:
            skipped[column] = f"{len(order)} distinct values; at most {MOST_GROUPS} make groups"
            continue
        for label in order:
            members = [s for s, own in zip(known, labels, strict=True) if own == label]
            groups.append((column, label, members))
    return groups, skipped


def labels_of(column: str, values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Group of each value of a column, and the groups in order without the empty ones."""
    given = sorted({value for value in values if value})
    numbers = {value: _number(value) for value in given}
    if column.lower() == "age":
        wrong = [value for value, number in numbers.items() if not 0 <= number < math.inf]
        if wrong:
            raise SubgroupError(
                f"column {column} has {wrong[:3]}; years as a number, e.g. 45, or nothing are "
                "needed."
            )
        names = ["<40", "40–59", "60–74", "≥75"]
        label = {v: names[int(np.searchsorted(AGE_BANDS, x, "right"))] for v, x in numbers.items()}
    elif len(given) > MOST_VALUES and all(math.isfinite(x) for x in numbers.values()):
        every = [numbers[value] for value in values if value]
        cuts = np.unique(np.quantile(every, [0.25, 0.5, 0.75])).tolist()
        ends = [f"{round(cut, 4):.12g}" for cut in cuts]
        names = [f"≤{ends[0]}", *(f">{a} to {b}" for a, b in pairwise(ends)), f">{ends[-1]}"]
        label = {v: names[int(np.searchsorted(cuts, x, "left"))] for v, x in numbers.items()}
    else:
        names, label = given, {value: value for value in given}
    labels = [label[value] if value else NOT_GIVEN for value in values]
    return labels, [name for name in [*names, NOT_GIVEN] if name in labels]


def figures(members: Sequence[Study], threshold: float | None) -> dict[str, Any]:
    """Counts, AUROC, false-positive rate and sensitivity of a group; None is undefined."""
    normal = [study for study in members if not study.anomalous]
    anomalous = [study for study in members if study.anomalous]
    few = [
        f"{len(part)} {name}, fewer than {fewest}"
        for part, name, fewest in (
            (normal, "normals", FEWEST_NORMALS),
            (anomalous, "anomalous", FEWEST_ANOMALOUS),
        )
        if len(part) < fewest
    ]
    return {
        "studies": len(members),
        "patients": len({study.patient for study in members}),
        "normal": len(normal),
        "anomalous": len(anomalous),
        **_auroc(members),
        **_rate("false_positive_rate", "false_positives", normal, threshold),
        **_rate("sensitivity", "detections", anomalous, threshold),
        "warning": "; ".join(few),
    }


def markdown(report: dict[str, Any]) -> str:
    """A table for each attribute, and what was left out."""
    threshold = report["volume_threshold"]
    limit = "not set" if threshold is None else f"{threshold:.4g}"
    lines = ["# Figures by group", "", f"{report['notes']} Volume threshold: {limit}.", ""]
    header = ["group", "studies", "normal", "anomalous", "volume AUROC", "false-positive rate"]
    header += ["sensitivity", "warning"]
    for attribute in dict.fromkeys(row["attribute"] for row in report["rows"]):
        own = [_cells(row) for row in report["rows"] if row["attribute"] == attribute]
        title = attribute.replace("|", "\\|")
        lines += [f"## {title}", "", *markdown_table(header, own), ""]
    for key in ("cases_without_attributes", "cases_without_scores", "cases_not_scored"):
        if report[key]:
            lines.append(f"- {key.replace('_', ' ')}: {', '.join(report[key])}")
    lines += [f"- column {name}: {why}" for name, why in report["columns_without_groups"].items()]
    return "\n".join(lines) + "\n"


def _auroc(members: Sequence[Study]) -> dict[str, Any]:
    """AUROC of volume scores with its interval over patients."""
    names = ("volume_auroc", "volume_auroc_low", "volume_auroc_high")
    if not members:
        return dict.fromkeys(names)
    interval = bootstrap_auroc(
        np.array([study.score for study in members]),
        np.array([study.anomalous for study in members]),
        [study.patient for study in members],
        level=LEVEL,
    ).to_dict()
    return dict(zip(names, (interval[key] for key in ("value", "low", "high")), strict=True))


def _rate(
    name: str, counted: str, members: Sequence[Study], threshold: float | None
) -> dict[str, Any]:
    """Share of studies above the threshold, its exact interval (Clopper & Pearson), and count."""
    from scipy.stats import binomtest

    names = (name, f"{name}_low", f"{name}_high", counted)
    if threshold is None or not members:
        return {**dict.fromkeys(names), counted: None if threshold is None else 0}
    count = sum(study.score > threshold for study in members)
    ends = binomtest(count, len(members)).proportion_ci(LEVEL)
    found = (count / len(members), float(ends.low), float(ends.high), count)
    return dict(zip(names, found, strict=True))


def _cells(row: dict[str, Any]) -> list[str]:
    """A row of the Markdown table."""
    cells = [str(row[key]) for key in ("group", "studies", "normal", "anomalous")]
    cells.append(_with_interval(row, "volume_auroc", ".3f"))
    for key, count, whole in (
        ("false_positive_rate", "false_positives", "normal"),
        ("sensitivity", "detections", "anomalous"),
    ):
        rate = _with_interval(row, key, ".1%")
        cells.append(rate if rate == MISSING else f"{rate}, {row[count]}/{row[whole]}")
    return [*cells, row["warning"]]


def _with_interval(row: dict[str, Any], key: str, form: str) -> str:
    if row[key] is None:
        return MISSING
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    ends = "" if low is None else f" ({low:{form}} to {high:{form}})"
    return f"{row[key]:{form}}{ends}"


def _number(text: str) -> float:
    """A number, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
