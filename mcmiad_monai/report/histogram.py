"""Scores of a cohort beside those of the held-out normals, counted for a histogram."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcmiad_monai.calibration import Calibration, calibration_for
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.report.rows import Row
from mcmiad_monai.report.words import promise

#: Bars of a histogram.
BARS = 36


def histograms(rows: Sequence[Row], stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One histogram for each modality of the cohort, as the page draws it.

    Parameters
    ----------
    rows : sequence of Row
    stored : mapping
        Calibration of the model.
    """
    groups: dict[str | None, list[float]] = {}
    for row in rows:
        if row.score is not None and math.isfinite(row.score):
            groups.setdefault(row.modality, []).append(row.score)
    return [
        histogram(modality, scores, _calibration(stored, modality))
        for modality, scores in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]


def _calibration(stored: Mapping[str, Any], modality: str | None) -> Calibration | None:
    try:
        return calibration_for(stored, modality)
    except ValueError:  # the model was not calibrated for it
        return None


def histogram(
    modality: str | None, scores: Sequence[float], calibration: Calibration | None
) -> dict[str, Any]:
    """Counts of scores in bars of one width; the last bar has all that is above.

    Returns
    -------
    dict
        ``low`` and ``high``, the ends of the axis; ``cohort`` and ``normals``, counts (BARS,);
        ``threshold``; and what the page says of them.
    """
    values = np.asarray(scores, np.float64)
    normals = np.asarray(calibration.volume_scores if calibration else (), np.float64)
    limit = calibration.volume_threshold if calibration else math.inf
    everything = np.concatenate([values, normals])
    wanted = [float(np.quantile(values, 0.95)), *(1.1 * normals[-1:]).tolist()]
    wanted += [2.5 * limit] if math.isfinite(limit) else []
    high = min(max(wanted), float(everything.max()))
    high = max(high, 1.1 * limit if math.isfinite(limit) else high)
    least = float(everything.min())
    low = least - 0.05 * (high - least)
    if not high > low:
        high = low + 1.0
    edges = np.linspace(low, high, BARS + 1)

    def counts(of: Any) -> list[int]:
        inside = np.clip(of, low, high)
        return [int(n) for n in np.histogram(inside, edges)[0]]

    kind = MODALITIES.get(modality or "")
    return {
        "title": "Scores" if kind is None else f"Scores of {kind.title}",
        "low": low,
        "high": high,
        "beyond": int((values > high).sum()),
        "cohort": counts(values),
        "normals": counts(normals),
        "threshold": limit if math.isfinite(limit) else None,
        "above": int((values > limit).sum()),
        "words": "The thresholds of the model are not known."
        if calibration is None
        else promise(calibration),
    }
