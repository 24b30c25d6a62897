"""Confidence intervals by resampling patients, whose images stay together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mcmiad_monai.metrics.curves import auroc
from mcmiad_monai.metrics.histogram import ScoreHistogram

#: Resolution of the histograms kept for each patient: 1,282 bins of 3 %, 20 kB a patient.
PATIENT_BITS = 5
DRAWS = 1000


@dataclass(frozen=True)
class Interval:
    """A figure and its percentile interval.

    Attributes
    ----------
    value : float
        Of all patients; NaN where it is undefined.
    low, high : float
        Ends of the interval; NaN where no draw was defined.
    level : float
        Share of draws inside.
    draws, undefined : int
        Draws made, and those that were left out because the figure was undefined on them.
    patients : int
        What was resampled.
    """

    value: float
    low: float
    high: float
    level: float
    draws: int
    undefined: int
    patients: int

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON; an undefined figure is null."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[Hashable],
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic over resampled patients.

    Parameters
    ----------
    statistic : callable
        Gets the indices (n,) of the images drawn, some of them several times.
    groups : sequence of hashable
        Patient of each image.

    Raises
    ------
    ValueError
        If there is no image, or the level is not between 0 and 1.
    """
    rows: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        rows.setdefault(group, []).append(index)
    members = [np.array(indices) for indices in rows.values()]
    _require(len(members), level)
    rng = np.random.default_rng(seed)
    values = [
        statistic(
            np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        )
        for _ in range(draws)
    ]
    return _interval(statistic(np.arange(len(groups))), values, level, len(members))


def bootstrap_auroc(
    scores: np.ndarray, labels: np.ndarray, groups: Sequence[Hashable], **options: Any
) -> Interval:
    """Interval of the AUROC of images; see :func:`bootstrap_interval` for the options."""
    scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
    return bootstrap_interval(lambda rows: auroc(scores[rows], labels[rows]), groups, **options)


class PatientPixels:
    """Histograms of the pixels of each patient, for an interval of the pixel AUROC.

    Memory grows with the patients, 20 kB each, and not with their pixels.
    """

    def __init__(self, bits: int = PATIENT_BITS) -> None:
        self._bits = bits
        self._pairs: dict[Hashable, tuple[ScoreHistogram, ScoreHistogram]] = {}

    def update(self, patient: Hashable, heatmap: Tensor, mask: Tensor) -> None:
        """Count the pixels of a patient's image on its mask, > 0 is lesion."""
        fresh = (ScoreHistogram(self._bits), ScoreHistogram(self._bits))
        negative, positive = self._pairs.setdefault(patient, fresh)
        lesion = mask > 0
        negative.update(heatmap[~lesion])
        positive.update(heatmap[lesion])

    def auroc_interval(self, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
        """Interval of the pixel AUROC over resampled patients."""
        _require(len(self._pairs), level)
        negative, positive = (
            np.stack([pair[i].counts.numpy() for pair in self._pairs.values()]) for i in (0, 1)
        )  # (patients, bins)
        count = len(self._pairs)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        weights = np.concatenate([np.ones((1, count)), drawn])  # (1 + draws, patients)
        values = _aurocs(weights @ positive, weights @ negative)
        return _interval(values[0], values[1:].tolist(), level, count)


def _aurocs(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUROC of each pair of histograms (n, bins); NaN where one class is missing."""
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(1)
    pairs = positive.sum(1) * negative.sum(1)
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), math.nan)


def _interval(value: float, values: Sequence[float], level: float, patients: int) -> Interval:
    defined = np.asarray([v for v in values if not math.isnan(v)])
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if defined.size else (math.nan, math.nan)
    undefined = len(values) - defined.size
    return Interval(float(value), float(low), float(high), level, len(values), undefined, patients)


def _require(patients: int, level: float) -> None:
    if patients == 0 or not 0 < level < 1:
        raise ValueError(
            f"got {patients} patients and level {level}; at least one patient, and a level between "
            "0 and 1, are needed."
        )
