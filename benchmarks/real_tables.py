"""The table of a set on the screen, in Markdown and for JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from real_auto import Pick
from real_choice import (
    Row,
    candidates,
    choose,
    choose_automatically,
    default_of,
    validated,
)
from real_measures import ends
from real_sets import RealSet

#: Figure → its column; those with an interval in Markdown are marked.
COLUMNS = {
    "image_maximum": "image AUROC, maximum",
    "image_hottest": "hottest 5 %",
    "image_mean": "mean",
    "image_eq7": "Eq. 7",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "dice": "Dice at the threshold",
    "normal_above": "normal pixels above",
    "slices_s_one": "slices/s, one thread",
    "slices_s_all": "slices/s, all",
    "fit_seconds": "fitting, s",
    "fit_megabytes": "fitting, MB",
}
WITH_INTERVAL = ("image_hottest", "pixel_ap")
DIGITS = {"slices_s_one": 1, "slices_s_all": 1, "fit_seconds": 1, "fit_megabytes": 0}


def report(
    rows: list[Row], kind: RealSet, default_name: str | None, picks: list[list[Pick]]
) -> dict[str, Any]:
    """Everything about a set, fit for JSON; `picks` are those of ``score: auto`` by inputs."""
    default = default_of(rows, kind, default_name)
    choices = {"labels, our candidates": choose(candidates(rows), kind)}
    choices["labels, all rows"] = choose(rows, kind)
    for pick in picks:
        name = f"score: auto, without labels, {pick[0].inputs.name}"
        choices[name] = choose_automatically(pick, rows, kind)
    return {
        "title": kind.title,
        "note": kind.note,
        "default": default.name,
        "choice": choices,
        "rows": {row.name: content(row, default, kind) for row in rows},
        "shown": [row.name for row in shown(rows, kind, default)],
    }


def content(row: Row, default: Row, kind: RealSet) -> dict[str, Any]:
    """Figures of a row with intervals, and their differences to those of the default."""
    found: dict[str, Any] = {"ours": row.source.ours, "threshold": row.threshold, **row.costs}
    for name, values in row.drawn.items():
        found[name] = float(values[0])
        found[f"{name}_interval"] = ends(values)
        if row is not default:
            away = values - default.drawn[name]
            found[f"{name}_minus_default"] = float(away[0])
            found[f"{name}_minus_default_interval"] = ends(away)
    found.update({f"{name}_sd": value for name, value in row.spread.items()})
    found["validation"] = {
        name: float(np.mean([fold[name] for fold in row.validation])) for name in row.validation[0]
    }
    found["validation_worth"], found["image_score"] = validated(row, kind)
    return found


def shown(rows: list[Row], kind: RealSet, default: Row) -> list[Row]:
    """Of every source the row as it comes and the one that validation ranks first."""
    kept: list[Row] = []
    for source in dict.fromkeys(row.source.name for row in rows):
        own = [row for row in rows if row.source.name == source]
        kept += [row for row in own if row.plain or row is default]
        kept += [max(own, key=lambda row: validated(row, kind)[0])]
    return list({id(row): row for row in kept}.values())


def as_text(found: dict[str, Any], *, everything: bool = False) -> str:
    """A table for the screen."""
    names = list(found["rows"]) if everything else found["shown"]
    columns = columns_of(found, names)
    wide = max(len(name) for name in names) + 3
    lines = [f"\n{found['title']} ({found['note']})"]
    lines += [f"{'':<{wide}}" + "".join(f"{short(COLUMNS[c]):>11}" for c in columns)]
    for name in names:
        mark = "* " if name == found["default"] else "  "
        cells = [cell(found["rows"][name], column) for column in columns]
        lines += [f"{mark}{name:<{wide - 2}}" + "".join(f"{one:>11}" for one in cells)]
    lines += ["* the default, with which the others are compared"]
    return "\n".join([*lines, *(choice_line(*one) for one in found["choice"].items())])


def short(title: str) -> str:
    """A title that fits a narrow column."""
    words = {"image AUROC, maximum": "maximum", "Dice at the threshold": "Dice"}
    words |= {"normal pixels above": "above", "slices/s, one thread": "slices/s"}
    return words.get(title, title)


def choice_line(name: str, choice: dict[str, Any]) -> str:
    """A sentence about a choice."""
    return (
        f"by {name}: chosen is {choice['chosen']} ({choice['worth_of_chosen']:.3f} on the "
        f"test part); best there is {choice['best']} ({choice['worth_of_best']:.3f}): regret "
        f"{choice['regret']:.3f}"
    )


def columns_of(found: dict[str, Any], names: list[str]) -> list[str]:
    """Columns that any row has."""
    return [c for c in COLUMNS if any(c in found["rows"][name] for name in names)]


def cell(figures: dict[str, Any], column: str) -> str:
    """A figure as text."""
    if column not in figures or np.isnan(figures[column]):
        return "–"
    if column == "normal_above":
        return f"{100 * figures[column]:.1f} %"
    tail = f" ±{figures[f'{column}_sd']:.3f}" if f"{column}_sd" in figures else ""
    return f"{figures[column]:.{DIGITS.get(column, 3)}f}{tail}"


def as_markdown(found: dict[str, Any]) -> str:
    """A table for a page, the default in bold, the headline figures with intervals."""
    names = found["shown"]
    columns = columns_of(found, names)
    lines = ["| method | " + " | ".join(COLUMNS[c] for c in columns) + " |"]
    lines += ["|---" * (1 + len(columns)) + "|"]
    for name in names:
        figures = found["rows"][name]
        cells = [cell(figures, c) + interval(figures, c) for c in columns]
        bold = "**" if name == found["default"] else ""
        lines += [f"| {bold}{name}{bold} | " + " | ".join(cells) + " |"]
    sentences = [choice_line(*one) for one in found["choice"].items()]
    sentences = [f"{one[0].upper()}{one[1:]}." for one in sentences]
    title = f"## {found['title'][0].upper()}{found['title'][1:]}"
    return "\n\n".join([title, f"{found['note']}.", "\n".join(lines), *sentences]) + "\n"


def interval(figures: dict[str, Any], column: str) -> str:
    """Ends of the interval of a headline figure."""
    if column not in WITH_INTERVAL or f"{column}_interval" not in figures:
        return ""
    low, high = figures[f"{column}_interval"]
    return f" ({low:.2f}–{high:.2f})"


def write_markdown(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """The tables of all sets as one page."""
    path.write_text("\n".join(as_markdown(one) for one in found.values()), encoding="utf-8")
