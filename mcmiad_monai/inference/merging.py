"""The reports of several runs into one folder as one."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcmiad_monai.files.writing import csv_cell

logger = logging.getLogger(__name__)

Report = Mapping[str, Any]
#: Of ``scores.csv``.
COLUMNS = ("case", "volume_score", "slice", "slice_score", "anomalous", "error", "warnings")
#: What a report says of the model of its scores.
MODEL = ("calibration", "provenance", "inferred_with")


def earlier_report(path: Path) -> Report | None:
    """The report that a ``scores.json`` holds, None if there is none.

    A file that is no report is kept under the name ``scores.json.unreadable``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        merge_reports(content, {"scores": [], "failed": {}})
        score_table(content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        kept = path.with_name(f"{path.name}.unreadable")
        path.replace(kept)
        logger.warning("%s is no report of studies; it is kept as %s.", path, kept.name)
        return None
    return dict(content)


def merge_reports(earlier: Report | None, new: Report) -> dict[str, Any]:
    """A report with the studies of an earlier one; of a study in both, the new scores count.

    A study that has scores and fails now has both: its earlier result is still there. Studies that
    another model scored are named in ``earlier_models``, with what is known of it.
    """
    if earlier is None:
        return dict(new)
    done = {study["case"] for study in new["scores"]}
    scores = [study for study in earlier["scores"] if study["case"] not in done]
    failed = {name: text for name, text in earlier["failed"].items() if name not in done}
    kept = {study["case"] for study in scores}
    merged = {
        **new,
        "failed": {**failed, **new["failed"]},
        "scores": [*scores, *new["scores"]],
    }
    merged["studies"] = len(kept | done | set(merged["failed"]))
    if models := _earlier_models(earlier, new, kept):
        merged["earlier_models"] = models
    return merged


def _earlier_models(earlier: Report, new: Report, kept: set[str]) -> list[dict[str, Any]]:
    """Models other than the new one, each with its studies that are kept."""
    models = [dict(model) for model in earlier.get("earlier_models", [])]
    others = {name for model in models for name in model["studies"]}
    own = [study["case"] for study in earlier["scores"] if study["case"] not in others]
    same = all(_plain(earlier.get(key)) == _plain(new.get(key)) for key in MODEL)
    if not same:
        models.append({**{key: earlier.get(key) for key in MODEL}, "studies": own})
    for model in models:
        model["studies"] = [name for name in model["studies"] if name in kept]
    return [model for model in models if model["studies"]]


def _plain(content: Any) -> Any:
    """As it is read from JSON again."""
    return json.loads(json.dumps(content, default=str))


def score_table(report: Report) -> str:
    """CSV with one row a slice; a study without any has one row, with its error if it failed."""
    stream = io.StringIO()
    rows = csv.writer(stream)
    rows.writerow(COLUMNS)
    for study in report["scores"]:
        name, warnings = csv_cell(study["case"]), " ".join(study.get("warnings", ()))
        if not study["slices"]:
            rows.writerow([name, "", "", "", "", "", warnings])
        for entry in study["slices"]:
            volume, score = _figure(study["volume_score"]), _figure(entry["score"])
            rows.writerow([name, volume, entry["index"], score, entry["anomalous"], "", warnings])
    for name, error in report["failed"].items():
        rows.writerow([csv_cell(name), "", "", "", "", csv_cell(error), ""])
    return stream.getvalue()


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
