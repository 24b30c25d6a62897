"""What states, warnings and thresholds are called on the pages."""

from __future__ import annotations

import math

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.inference.cohort import MEANING
from mcmiad_monai.report.rows import Row

#: State of a study → what it is called, and what that means.
STATES = {
    "above": ("Above threshold", "The score is above the threshold of the study."),
    "look": ("No verdict", "There is no verdict, or a warning says not to trust it."),
    "below": ("Below threshold", "The score is below the threshold. This is no diagnosis."),
    "refused": ("Refused", "The study cannot be used; the reason is given."),
    "failed": ("Failed", "Its analysis failed; the reason is given."),
    "quarantined": ("Quarantined", "Its analysis ended the program each time."),
    "pending": ("Pending", "It has not been analysed yet."),
}
#: Warning → its short name.
WARNINGS = {"nothing_looked_at": "nothing looked at", "out_of_distribution": "unlike the training"}
#: Kind of error → what may be told of it without the words of the error, which can hold names.
REASONS = {
    "VolumeError": "The image cannot be used.",
    "CaseError": "It is not clear what the study is.",
    "StudyExistsError": "There is a result of another input under its name.",
    "DiskFullError": "The disk was full.",
    "MemoryError": "There was not enough memory.",
    "OSError": "A file could not be read or written.",
}
DISCLAIMER = "Research software, not for diagnosis"


def warning_name(warning: str) -> str:
    """Short name of a warning."""
    return WARNINGS.get(warning, warning.replace("_", " "))


def warning_text(warning: str) -> str:
    """What a warning means, as a sentence."""
    meaning = MEANING.get(warning, "what this warning means is not known to this version")
    return f"{warning_name(warning).capitalize()}: {meaning}."


def kind_of_reason(error: str) -> str:
    """A reason without its own words."""
    kind = error.partition(":")[0]
    return REASONS.get(kind, "The reason is in the results themselves.") if error else ""


def verdict_of(row: Row) -> str:
    """The verdict on a study in one sentence."""
    if row.status != "done":
        return STATES[row.status][1]
    if row.verdict == "none":
        return "No verdict: " + (
            "the model has no threshold for studies."
            if row.score is not None
            else "no slice was looked at."
        )
    side = "above" if row.verdict == "anomalous" else "below"
    return f"The score is {side} the threshold." + (
        " A warning says not to trust it." if row.warnings else ""
    )


def promise(calibration: Calibration) -> str:
    """What the threshold of studies promises."""
    if not math.isfinite(calibration.volume_threshold):
        return (
            f"There is no threshold: {calibration.normal_patients} held-out healthy patients are "
            f"too few for a rate of {calibration.false_positive_rate:.0%}."
        )
    return (
        f"Of new healthy studies at most {calibration.false_positive_rate:.0%} are expected above "
        f"the threshold of {figure(calibration.volume_threshold)}, as far as they are like the "
        f"held-out ones (studies: {calibration.normal_volumes}, patients: "
        f"{calibration.normal_patients}). It does not say how many lesions lie above it."
    )


def figure(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where it is not known."""
    if value is None:
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(decimals, digits)}f}"


def place(mm: list[float]) -> str:
    """A place in RAS millimetres, each axis by the side on which it lies."""
    sides = ("RL", "AP", "SI")
    return ", ".join(
        f"{pair[value < 0]} {abs(value):.1f}" for value, pair in zip(mm, sides, strict=True)
    )
