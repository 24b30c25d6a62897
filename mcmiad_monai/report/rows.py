"""What a report tells of a cohort: one row a study, from the folder that `infer` or `screen` made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcmiad_monai.data.cases.names import plain_name

#: Kinds of errors by which a study itself is refused; of any other kind, its analysis failed.
REFUSALS = (
    *("VolumeError", "CaseError", "MissingSplitError", "StudyExistsError"),
    *("WeightsError", "OverlayError", "ValueError"),
)


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
        return "below" if self.verdict == "normal" and not self.warnings else "look"


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
    """

    rows: list[Row]
    calibration: Mapping[str, Any]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_cohort(folder: str | Path) -> Cohort:
    """Read what `mcmiad infer` or `mcmiad screen` left in a folder.

    Raises
    ------
    ReportError
        If there is neither.
    """
    root = Path(folder)
    path = root / "scores.json"
    if not path.is_file():
        raise ReportError(
            f"{root} has no scores.json; a folder is needed that mcmiad infer wrote (--out)."
        )
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = sorted(_rows_of_inference(root, report), key=_rank)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path} is no report of studies ({type(error).__name__}: {error}); write it anew with "
            "mcmiad infer."
        ) from error
    notes = []
    if models := report.get("earlier_models"):
        others = sum(len(model["studies"]) for model in models)
        notes.append(
            f"{others} studies were scored by another model: their scores cannot be compared with "
            "those of the others, and the held-out normals shown are not theirs."
        )
    return Cohort(rows, report.get("calibration") or {}, _facts(report), notes)


def _rank(row: Row) -> tuple[bool, float, str]:
    return (row.score is None, -(row.score or 0.0), row.case)


def _rows_of_inference(root: Path, report: Mapping[str, Any]) -> Iterator[Row]:
    failed = dict(report.get("failed") or {})
    scored = set()
    for scores in report["scores"]:
        case = str(scores["case"])
        scored.add(case)
        row = row_of_scores(scores, _folder(root, case))
        if reason := failed.get(case):
            yield Row(
                case,
                _status(reason),
                score=row.score,
                error=f"{reason} (the result shown is of an earlier run)",
                modality=row.modality,
                input=row.input,
                folder=row.folder,
            )
        else:
            yield row
    for case, reason in failed.items():
        if case not in scored:
            yield Row(str(case), _status(reason), error=str(reason))
    for case in report.get("not_done") or ():
        if case not in scored and case not in failed:
            yield Row(str(case), "pending")


def row_of_scores(scores: Mapping[str, Any], folder: Path | None) -> Row:
    """The row of a study from its ``<case>_scores.json``."""
    verdicts = {True: "anomalous", False: "normal", None: "none"}
    slices = scores["slices"]
    return Row(
        case=str(scores["case"]),
        status="done",
        score=scores["volume_score"],
        threshold=scores["volume_threshold"],
        verdict=verdicts[scores["anomalous"]],
        warnings=tuple(scores.get("warnings") or ()),
        anomaly_ml=scores.get("anomaly_ml"),
        hottest=scores.get("hottest"),
        slices=scores["slices_scored"],
        slices_above=sum(entry["anomalous"] is True for entry in slices),
        modality=scores.get("modality"),
        input=scores.get("input"),
        folder=folder,
    )


def _status(reason: str) -> str:
    return "refused" if reason.partition(":")[0] in REFUSALS else "failed"


def _folder(root: Path, case: str) -> Path | None:
    """Where a study's files are; a name that is no name of a folder has none."""
    if plain_name(case) != case:
        return None
    folder = root / case
    return folder if (folder / f"{case}_scores.json").is_file() else None


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    """Of model and run, what names no person and no place on a disk."""
    facts: dict[str, str] = {}
    made = next((s["made_with"] for s in report["scores"] if s.get("made_with")), {})
    facts |= settings_of(made)
    inferred = report.get("inferred_with") or {}
    if revision := inferred.get("git_revision"):
        facts["Source revision"] = str(revision)
    software = inferred.get("software") or {}
    shown = [
        f"{name} {software[name]}" for name in ("python", "torch", "monai") if name in software
    ]
    return facts | ({"Software": ", ".join(shown)} if shown else {})


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
