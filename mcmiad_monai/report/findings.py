"""What the model found in a study, in words and figures, and what it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.report.html import Html, fill, join
from mcmiad_monai.report.rows import Row, settings_of
from mcmiad_monai.report.words import figure, place, verdict_of, warning_text


def findings_table(row: Row, scores: Mapping[str, Any]) -> Html:
    """The findings as a list of terms."""
    kind = MODALITIES.get(row.modality or "")
    entries = [
        ("Verdict", verdict_of(row)),
        ("Score", figure(row.score)),
        ("Threshold", figure(row.threshold)),
        ("Slices", f"{len(scores['slices'])} looked at{_above(scores)}"),
    ]
    if row.anomaly_ml is not None:
        entries.append(("Anomalous volume", f"{figure(row.anomaly_ml)} ml"))
    if row.hottest is not None:
        entries.append(("Hottest", f"{figure(row.hottest)} × the voxel threshold"))
    if mm := scores.get("hottest_mm"):
        entries.append(("Hottest place", f"{place(mm)} mm"))
    elif voxel := scores.get("hottest_voxel"):
        entries.append(("Hottest place", f"column {voxel[0]}, row {voxel[1]}"))
    if (typical := scores.get("typical_heat")) is not None:
        usual = scores.get("usual_heat")
        span = f", usually {figure(usual[0], 2)} to {figure(usual[1], 2)}" if usual else ""
        entries.append(("Median heat", f"{figure(typical, 2)}{span}"))
    if kind is not None:
        entries.append(("Modality", kind.title))
    return terms(entries)


def _above(scores: Mapping[str, Any]) -> str:
    """How many slices are above their threshold, where there is one."""
    verdicts = [entry["anomalous"] for entry in scores["slices"]]
    return "" if None in verdicts else f", {sum(verdicts)} above their threshold"


def provenance(row: Row, scores: Mapping[str, Any]) -> Html:
    """What the result rests on."""
    facts = settings_of(scores.get("made_with"))
    if row.input:
        facts = {"Input (SHA-256)": row.input, **facts}
    return terms(list(facts.items()))


def terms(entries: list[tuple[str, str]]) -> Html:
    """Terms with their descriptions."""
    one = "<div><dt>$term</dt><dd>$value</dd></div>"
    return join([fill(one, term=term, value=value) for term, value in entries])


def notices(row: Row, missing: str, data: Mapping[str, Any]) -> Html:
    """What has to be known before the images are looked at."""
    told = [("warn", warning_text(warning)) for warning in row.warnings]
    if row.error:
        told.append(("warn", "A later run of this study failed; this is its earlier result."))
    if missing:
        told.append(("note", f"{missing} The heat is shown alone."))
    steps = data["image"]["steps"] if data["kind"] == "volume" else (1, 1, 1)
    if not missing and max(steps) > 1:
        size = " × ".join(map(str, steps))
        told.append(("note", f"The image is shown in blocks of {size} voxels, to keep it small."))
    one = '<p class="notice $kind" role="note">$text</p>'
    return join([fill(one, kind=kind, text=text) for kind, text in told])
