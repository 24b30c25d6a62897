"""The report of a stress test: JSON, two CSV tables, a Markdown table and curves over severity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.files.writing import replace_atomically, write_csv, write_text
from mcmiad_monai.research.tables import MISSING, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Row = Mapping[str, Any]

#: Key, title and counts of the columns of the Markdown table and the panels of the picture.
AUROCS = (
    ("volume_auroc", "volume AUROC"),
    ("slice_auroc", "slice AUROC"),
    ("pixel_auroc", "pixel AUROC"),
)
RATES = (
    ("volume_false_positive", "volume false-positive rate", "normal_volumes"),
    ("slice_false_positive", "slice false-positive rate", "normal_slices"),
    ("pixel_false_positive", "pixel false-positive rate", "normal_pixels"),
)
#: One for each corruption, distinguished by colour and marker together.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00"),
    *("#56b4e9", "#7f3c8d", "#777777", "#000000", "#e6ab02"),
)
MARKERS = "os^DvPX*<>"
REFERENCE: dict[str, Any] = {"color": "#777777", "linewidth": 1.2, "linestyle": ":"}
NOTES = (
    "Severity 0 is the study as it is. AUROC and the slices that count are those of an evaluation. "
    "A false positive is a volume or slice without lesion above its calibrated threshold, or a "
    "foreground pixel above 1.0 in a slice without lesion. A dash is undefined: only one class was "
    "present, or the threshold could not be set."
)


def write_report(report: Mapping[str, Any], studies: Sequence[Row], out: Path) -> None:
    """Write all files of a report, each whole or not at all."""
    rows: list[Row] = report["rows"]
    content = {**report, "undefined": "null: one class only, or no threshold"}
    write_text(out / "stress.json", json.dumps(content, indent=1, default=str))
    write_csv(out / "stress.csv", [{**row, "failed": len(row["failed"])} for row in rows])
    write_csv(out / "studies.csv", studies)
    write_text(out / "stress.md", markdown(report))
    draw_curves(rows, report["calibration"], out / "stress.png")


def markdown(report: Mapping[str, Any]) -> str:
    """One line a condition, with what failed below."""
    rows: list[Row] = report["rows"]
    header = ["corruption", "severity", "level", "studies", *(title for _, title in AUROCS)]
    header += [title for _, title, _ in RATES]
    units = {row["corruption"]: row["unit"] for row in rows if row["unit"]}
    failed = [f"- {line}" for line in failures_of(report)]
    lines = [
        f"# Stress test, {report['modality']}",
        "",
        NOTES,
        "",
        *markdown_table(header, map(_cells, rows)),
        "",
        *(f"- {name.replace('_', ' ')}: level in {unit}" for name, unit in units.items()),
        *(["", "## Failed", "", *failed] if failed else []),
    ]
    return "\n".join(lines) + "\n"


def failures_of(report: Mapping[str, Any]) -> list[str]:
    """Which study failed, in which condition, and why."""
    lines = [f"{name}: {message}" for name, message in report["failed"].items()]
    for row in report["rows"]:
        place = f"{_title(row)} {row['severity']}"
        lines += [f"{name}, {place}: {message}" for name, message in row["failed"].items()]
    return lines


def draw_curves(rows: Sequence[Row], calibration: Mapping[str, Any], path: Path) -> None:
    """AUROCs above and false-positive rates below, over severity, one line a corruption."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(13, 7.4), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.subplots(2, 3, sharex=True)
    lines: dict[str, Line2D] = {}
    for cell, (key, title) in zip(axes[0], AUROCS, strict=True):
        lines = _panel(cell, rows, key, title)
        cell.axhline(0.5, **REFERENCE)
    lowest = min(cell.get_ylim()[0] for cell in axes[0])
    for cell in axes[0]:
        cell.set_ylim(lowest, 1.02)
    for cell, (key, title, _) in zip(axes[1], RATES, strict=True):
        _panel(cell, rows, f"{key}_rate", title)
        cell.set_xlabel("severity")
        if calibration:  # the rate that the threshold promises
            of_pixels = key == "pixel_false_positive"
            promised = "pixel_false_positive_rate" if of_pixels else "false_positive_rate"
            cell.axhline(calibration[promised], **REFERENCE)
        top = max(cell.get_ylim()[1], 0.01)
        cell.set_ylim(-0.03 * top, top)
        cell.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(
        "Figures under graded corruptions (dotted: AUROC of chance, rate promised by calibration)",
        fontsize=11,
    )
    names = [name.replace("_", " ") for name in lines]
    figure.legend(list(lines.values()), names, loc="outside right center", frameon=False)
    replace_atomically(path, figure.savefig)


def _panel(cell: Axes, rows: Sequence[Row], key: str, title: str) -> dict[str, Line2D]:
    """Draw a figure over severity; every line starts at the clean studies."""
    clean, *others = rows
    lines = {}
    names = dict.fromkeys(row["corruption"] for row in others)
    for name, colour, marker in zip(names, cycle(COLOURS), cycle(MARKERS), strict=False):
        own = [clean, *(row for row in others if row["corruption"] == name)]
        values = [float("nan") if row[key] is None else row[key] for row in own]
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "linewidth": 1.6,
            "markersize": 5,
        }
        (lines[name],) = cell.plot([row["severity"] for row in own], values, **style)
    cell.set_title(title, fontsize=11)
    cell.grid(color="#e6e6e6", linewidth=0.6)
    cell.set_xticks(range(6))
    cell.spines[["top", "right"]].set_visible(False)
    if all(row[key] is None for row in rows):
        cell.text(0.5, 0.5, "undefined", ha="center", transform=cell.transAxes, color="#777777")
    return lines


def _title(row: Row) -> str:
    return str(row["corruption"]).replace("_", " ")


def _cells(row: Row) -> list[str]:
    """A row of the Markdown table."""
    cells = [_title(row), str(row["severity"]), f"{row['level']:g}", str(row["studies"])]
    cells += [MISSING if row[key] is None else f"{row[key]:.3f}" for key, _ in AUROCS]
    for key, _, whole in RATES:
        rate, count = row[f"{key}_rate"], row[f"{key}s"]
        cells.append(MISSING if rate is None else f"{rate:.2%} ({count}/{row[whole]})")
    return cells
