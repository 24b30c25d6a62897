"""What a report tells of a cohort: one row a study, from what `infer` or `screen` left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mcmiad_monai.cohort.results import open_results
from mcmiad_monai.data.cases.names import plain_name

#: Files that a command leaves in the folder of a cohort: `infer`, and `screen`.
INFERRED, SCREENED_MODEL, PLAN = "scores.json", "model.json", "plan.jsonl"
#: What is asked of the table of results, in the order of the fields of `Row`.
QUERY = """
SELECT "case", status, score, threshold, verdict, warnings, anomaly_ml, hottest, slices,
       slices_above, error, modality, image, input, folder
FROM results ORDER BY score DESC NULLS LAST, number
"""


class ReportError(ValueError):
    """There is nothing in a folder to report on."""


@dataclass(frozen=True, slots=True)
class Row:
    """A study of the cohort; what is not known is None.

    Attributes
    ----------
    case : str
        Name of the study.
    status : str
        ``"done"``, ``"refused"``, ``"failed"``, ``"quarantined"`` or ``"pending"``.
    score, threshold : float, optional
        Of the study as a whole.
    verdict : str
        ``"anomalous"``, ``"normal"`` or ``"none"``.
    warnings : tuple of str
        Why not to trust score and verdict.
    anomaly_ml, hottest : float, optional
        Volume of the mask in millilitres; largest heat, in thresholds.
    slices, slices_above : int, optional
        Looked at, and above their threshold.
    error : str
        Why there is no result.
    modality, image, input : str, optional
        Of the study: name of the modality, path, digest of its files.
    folder : Path, optional
        Where its files are.
    """

    case: str
    status: str
    score: float | None = None
    threshold: float | None = None
    verdict: str = "none"
    warnings: tuple[str, ...] = ()
    anomaly_ml: float | None = None
    hottest: float | None = None
    slices: int | None = None
    slices_above: int | None = None
    error: str = ""
    modality: str | None = None
    image: str | None = None
    input: str | None = None
    folder: Path | None = None

    @property
    def state(self) -> str:
        """What the study is listed as.

        ``"above"``, ``"below"``, ``"look"`` (a person has to, for there is no verdict, or a
        warning that forbids to trust it), or its status.
        """
        if self.status != "done":
            return self.status
        if self.verdict == "anomalous":
            return "above"
        trusted = self.verdict == "normal" and not self.warnings and not self.error
        return "below" if trusted else "look"


@dataclass(frozen=True)
class Cohort:
    """A folder of results.

    Attributes
    ----------
    rows : list of Row
        Most anomalous first, those without a score last.
    calibration : mapping
        Of the model, as it is stored; empty where it is not known.
    facts : dict
        What is known of model and run, for people.
    notes : list of str
        What a reader has to know before anything else.
    organs : mapping
        Case → path of the mask of the organ that was looked at.
    """

    rows: list[Row]
    calibration: Mapping[str, Any]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    organs: Mapping[str, str] = field(default_factory=dict)


def read_cohort(folder: str | Path) -> Cohort:
    """Read what `mcmiad infer` or `mcmiad screen` left in a folder.

    Raises
    ------
    CohortError
        If there is neither.
    """
    root = Path(folder)
    rows = list(read_rows(root))
    report, model = _json(root / INFERRED), _json(root / SCREENED_MODEL)
    made: Mapping[str, Any] = model.get("made_with") or next(
        (one["made_with"] for one in report.get("scores", ()) if one.get("made_with")), {}
    )
    stored = model.get("calibration") or report.get("calibration") or {}
    facts = settings_of(made) | _software(report.get("inferred_with") or {})
    organs = _organs(root / PLAN) if made.get("region") == "organ" else {}
    return Cohort(rows, stored, facts, _notes(report), organs)


def read_rows(root: Path) -> Iterator[Row]:
    """The studies of a cohort, most anomalous first, those without a score last."""
    with open_results(root) as connection:
        found = connection.execute(QUERY)
        while some := found.fetchmany(10_000):
            for case, status, *values, folder in some:
                row = Row(case, status, *values)
                limited = row.threshold is not None or bool(row.slices_above)
                yield replace(
                    row,
                    verdict=row.verdict or "none",
                    warnings=tuple((values[3] or "").split()),
                    slices_above=row.slices_above if limited else None,
                    error=row.error or "",
                    folder=_folder(root, case, folder),
                )


def _folder(root: Path, case: str, folder: str | None) -> Path | None:
    """Where a study's files are; a name that is no name of a folder has none."""
    if folder is None or folder != case or plain_name(case) != case:
        return None
    return root / case if (root / case / f"{case}_scores.json").is_file() else None


def _json(path: Path) -> dict[str, Any]:
    """Content of a file that is not there of every cohort."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _organs(plan: Path) -> dict[str, str]:
    """Masks of the organs that were looked at, of a cohort that has a plan."""
    if not plan.is_file():
        return {}
    with plan.open(encoding="utf-8") as file:
        studies = map(json.loads, file)
        return {study["case"]: study["organ"] for study in studies if study.get("organ")}


def _notes(report: Mapping[str, Any]) -> list[str]:
    others = sum(len(model["studies"]) for model in report.get("earlier_models") or ())
    return (
        [
            f"{others} studies were scored by another model: their scores cannot be compared with "
            "those of the others, and the held-out normals shown are not theirs."
        ]
        if others
        else []
    )


def _software(inferred: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the software of a run."""
    versions = inferred.get("software") or {}
    names = [name for name in ("python", "torch", "monai") if name in versions]
    facts = {"Software": ", ".join(f"{name} {versions[name]}" for name in names)} if names else {}
    revision = inferred.get("git_revision")
    return facts | ({"Source revision": str(revision)} if revision else {})


def settings_of(made_with: Mapping[str, Any] | None) -> dict[str, str]:
    """What a result was made with, for people."""
    made = made_with or {}
    names = {
        "model": "Model (SHA-256)",
        "version": "mcmiad_monai",
        "precision": "Precision",
        "mask_threshold": "Mask threshold",
        "slice_range": "Slices looked at",
        "region": "Region",
    }
    facts = {title: made[key] for key, title in names.items() if made.get(key) is not None}
    if isinstance(share := facts.get("Slices looked at"), list):
        facts["Slices looked at"] = f"{share[0]:.0%} to {share[1]:.0%} of the volume"
    return {title: str(value) for title, value in facts.items()}
