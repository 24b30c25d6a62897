"""Confidence intervals by resampling patients, whose images stay together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcmiad_monai.metrics.curves import auroc
from mcmiad_monai.metrics.pixels import lesion_and_normal, same_shape

#: Resolution of the histograms kept for each patient: 1,282 bins of 3 %, 20 kB a patient.
PATIENT_BITS = 5
DRAWS = 1000
#: Weights of images that are held at a time: bounds the memory of an interval, to some 100 MB.
_WEIGHTS = 4_000_000


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
        Gets the indices (n,) of the images drawn, some of them several times, in rising order.
    groups : sequence of hashable
        Patient of each image.

    Raises
    ------
    ValueError
        If there is no image, or the level is not between 0 and 1.
    """
    member, patients = _members(groups)
    _require(patients, level)
    rows = np.arange(len(member))
    drawn = _draw(patients, draws, seed)  # (draws, patients)
    values = [statistic(np.repeat(rows, times[member])) for times in drawn]
    return _interval(statistic(rows), values, level, patients)


def bootstrap_auroc(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable],
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Interval of the AUROC: :func:`bootstrap_interval` of it, with one sort for all draws.

    Parameters
    ----------
    scores, labels : ndarray (n,)
        Of images; labels are 0/1.
    groups : sequence of hashable
        Patient of each image.

    Raises
    ------
    ValueError
        If the three differ in length, there is no image, or the level is not between 0 and 1.
    """
    scores, truth = np.asarray(scores), np.asarray(labels).astype(bool)
    if not len(scores) == len(truth) == len(groups):
        raise ValueError(
            f"found {len(scores)} scores, {len(truth)} labels and {len(groups)} patients; one "
            "label and one patient for each score are needed."
        )
    member, patients = _members(groups)
    _require(patients, level)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # one bin a distinct score
    drawn, chunk = _draw(patients, draws, seed), max(1, _WEIGHTS // len(scores))
    values: list[float] = []
    for start in range(0, draws, chunk):
        weights = drawn[start : start + chunk][:, member[order]]  # (chunk, n)
        positive, negative = (
            np.add.reduceat(weights * kind[order], starts, axis=1) for kind in (truth, ~truth)
        )
        values += _aurocs(positive, negative).tolist()
    return _interval(auroc(scores, truth), values, level, patients)


class PatientPixels:
    """Histograms of the pixels of each patient, for an interval of the pixel AUROC.

    Memory grows with the patients, 20 kB each, and not with their pixels.
    """

    def __init__(self, bits: int = PATIENT_BITS) -> None:
        self._bits = bits
        self._pairs: dict[Hashable, Tensor] = {}  # (2, bins): lesion, normal

    def update(self, patient: Hashable, heatmap: Tensor, mask: Tensor) -> None:
        """Count the pixels of a patient's image on its mask, > 0 is lesion."""
        heatmap, mask = same_shape((heatmap, mask))
        counts = torch.stack(lesion_and_normal(heatmap, mask > 0, self._bits))
        self._pairs[patient] = self._pairs.get(patient, 0) + counts

    def auroc_interval(self, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
        """Interval of the pixel AUROC over resampled patients."""
        _require(len(self._pairs), level)
        count = len(self._pairs)
        positive, negative = torch.stack(list(self._pairs.values()), 1).numpy()  # (patients, bins)
        weights = np.concatenate([np.ones((1, count)), _draw(count, draws, seed)])
        values = _aurocs(weights @ positive, weights @ negative)  # (1 + draws,)
        return _interval(values[0], values[1:].tolist(), level, count)


def _members(groups: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """Number of the patient of each image (n,), and how many patients there are."""
    numbers: dict[Hashable, int] = {}
    member = [numbers.setdefault(group, len(numbers)) for group in groups]
    return np.array(member, dtype=np.int64), len(numbers)


def _draw(patients: int, draws: int, seed: int) -> np.ndarray:
    """How often each patient comes in each draw with replacement, (draws, patients)."""
    return np.random.default_rng(seed).multinomial(
        patients, np.full(patients, 1 / patients), size=draws
    )


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
