"""The report of `mcmiad infer` as rows of the table of results."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.cohort.sql import CohortError, structure

if TYPE_CHECKING:
    import duckdb

VERDICTS = {True: "anomalous", False: "normal", None: "none"}


def insert_report(
    connection: duckdb.DuckDBPyConnection, folder: Path, columns: Mapping[str, str]
) -> None:
    """Fill the table ``results`` from ``scores.json``.

    Raises
    ------
    CohortError
        If the file is no report of studies.
    """
    path = folder / "scores.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = list(rows_of(report, folder))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CohortError(
            f"{path} is no report of studies ({type(error).__name__}: {error}); run `mcmiad infer "
            "--continue` into the folder, which writes it again."
        ) from error
    with tempfile.TemporaryDirectory(prefix="mcmiad-") as place:
        lines = Path(place) / "rows.jsonl"
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        connection.execute(
            f"INSERT INTO results SELECT unnest(json_transform(parsed(line), {structure(columns)}))"
            " FROM lines_of(?)",
            [str(lines)],
        )


def rows_of(report: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of a ``scores.json``: studies with scores, then those that failed or were not done.

    What it does not tell is left out: paths, patients, times. A study that failed when it was done
    again has the scores that it had before, and the error.

    Parameters
    ----------
    report : mapping
    folder : path
        Where the studies have theirs.
    """
    failed = dict(report["failed"])
    rows = [
        _row(study, folder) | {"error": failed.pop(study["case"], None)}
        for study in report["scores"]
    ]
    known = {row["case"] for row in rows} | set(failed)
    rows += [{"case": case, "status": "failed", "error": text} for case, text in failed.items()]
    left = [case for case in report.get("not_done", ()) if case not in known]
    rows += [{"case": case, "status": "pending"} for case in left]
    for number, row in enumerate(rows):
        yield {"number": number} | row


def _row(study: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Row of a study with scores."""
    x, y, z = study.get("hottest_mm") or (None, None, None)
    slices = study["slices"]
    return {
        "case": study["case"],
        "status": "done",
        "score": study["volume_score"],
        "threshold": study["volume_threshold"],
        "verdict": VERDICTS[study["anomalous"]],
        "warnings": " ".join(study.get("warnings", ())),
        "anomaly_ml": study.get("anomaly_ml"),
        "hottest": study.get("hottest"),
        "hottest_x_mm": x,
        "hottest_y_mm": y,
        "hottest_z_mm": z,
        "slices": len(slices),
        "slices_above": sum(bool(one["anomalous"]) for one in slices),
        "modality": study.get("modality"),
        "input": study.get("input"),
        "model": (study.get("made_with") or {}).get("model"),
        "folder": study["case"] if (folder / study["case"]).is_dir() else None,
    }
