"""Confidence intervals by resampling patients, whose images stay together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mcmiad_monai.metrics.curves import auroc

DRAWS = 1000
#: Weights of images held at a time: bounds the memory of an interval to about 100 MB.
_WEIGHTS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile interval.

    Attributes
    ----------
    value : float
        Over all patients; NaN if undefined.
    low, high : float
        Ends of the interval; NaN if the figure is undefined on every draw.
    level : float
        Share of draws inside the interval.
    draws, undefined : int
        Number of draws, and of those left out because the figure is undefined on them.
    patients : int
        Number of patients that were resampled.
    """

    value: float
    low: float
    high: float
    level: float
    draws: int
    undefined: int
    patients: int

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON; an undefined figure is null."""
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
    require_patients(patients, level)
    rows = np.arange(len(member))
    drawn = draw_patients(patients, draws, seed)  # (draws, patients)
    values = [statistic(np.repeat(rows, times[member])) for times in drawn]
    return percentile_interval(statistic(rows), values, level, patients)


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
    require_patients(patients, level)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # one bin a distinct score
    drawn, chunk = draw_patients(patients, draws, seed), max(1, _WEIGHTS // len(scores))
    values: list[float] = []
    for start in range(0, draws, chunk):
        weights = drawn[start : start + chunk][:, member[order]]  # (chunk, n)
        positive, negative = (
            np.add.reduceat(weights * kind[order], starts, axis=1) for kind in (truth, ~truth)
        )
        values += aurocs(positive, negative).tolist()
    return percentile_interval(auroc(scores, truth), values, level, patients)


def _members(groups: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """Number of the patient of each image (n,), and how many patients there are."""
    numbers: dict[Hashable, int] = {}
    member = [numbers.setdefault(group, len(numbers)) for group in groups]
    return np.array(member, dtype=np.int64), len(numbers)


def draw_patients(patients: int, draws: int, seed: int) -> np.ndarray:
    """How often each patient comes in each draw with replacement, (draws, patients)."""
    return np.random.default_rng(seed).multinomial(
        patients, np.full(patients, 1 / patients), size=draws
    )


def aurocs(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUROC of each pair of histograms (n, bins); NaN where one class is missing."""
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(1)
    pairs = positive.sum(1) * negative.sum(1)
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), math.nan)


def percentile_interval(
    value: float, values: Sequence[float], level: float, patients: int
) -> Interval:
    """Interval between the two tails of the draws on which the figure is defined."""
    defined = np.asarray([v for v in values if not math.isnan(v)])
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if defined.size else (math.nan, math.nan)
    undefined = len(values) - defined.size
    return Interval(float(value), float(low), float(high), level, len(values), undefined, patients)


def require_patients(patients: int, level: float) -> None:
    """Raise a ValueError without patients, or if the level is not between 0 and 1."""
    if patients == 0 or not 0 < level < 1:
        raise ValueError(
            f"got {patients} patients and level {level}; at least one patient, and a level between "
            "0 and 1, are needed."
        )
