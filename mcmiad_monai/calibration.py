"""From the scores of held-out normal studies to thresholds with a stated false-positive rate.

Three thresholds are stored with a model: for pixels (the unit of the heatmap: 1.0 is the
threshold), for slices and for volumes. Slice and volume thresholds are split-conformal quantiles
(Vovk et al., 2005): a new normal exceeds them with at most the chosen probability. The pixel
threshold is the conformal quantile at one half of a number that each patient has: at least half of
new normal patients have at most the chosen share of their foreground pixels above it.

Slices of one patient resemble each other, so that a hundred slices of five patients say less than
those of a hundred patients. What is exchangeable is patients: each has the same weight, however
many slices it gave, and the promise is for a slice of a patient who was not there before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mcmiad_monai.metrics.ranges import usual_range

#: Share of a normal patient's foreground pixels above the pixel threshold.
PIXEL_FALSE_POSITIVE_RATE = 0.005
#: Share of new normal patients who may exceed that rate. At one half the threshold is a median,
#: which no single odd patient can move far.
PATIENT_RATE = 0.5
#: Confidence of the interval of the pixel threshold, where there are patients enough for it.
CONFIDENCE = 0.95
#: Held-out scores that a model keeps; of more, as many quantiles, from the smallest to the largest.
KEPT_SCORES = 1000
#: Share of normal slices and volumes above their thresholds.
FALSE_POSITIVE_RATE = 0.05


def conformal_threshold(
    scores: Sequence[float] | np.ndarray,
    alpha: float,
    *,
    groups: Sequence[Hashable] | None = None,
) -> float:
    """Threshold that a new normal exceeds with probability at most ``alpha``.

    It is the ⌈(n + 1)(1 − α)⌉-th smallest of the n normal scores, and infinite when n is too small
    for the rate: then no finite threshold keeps the promise. With groups it is the smallest score
    t for which Σ_k F_k(t) ≥ (K + 1)(1 − α), F_k(t) being the share of group k's scores up to t
    (hierarchical conformal prediction: Lee, Barber, Willett, 2023); the same where every group has
    one score.

    Parameters
    ----------
    scores : sequence of float
        Of n normals.
    alpha : float
        False-positive rate.
    groups : sequence of hashable, optional
        Patient of each score. The promise is then for a score of a new patient.

    Raises
    ------
    ValueError
        If ``alpha`` is not between 0 and 1, or there is not one group for each score.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"false-positive rate {alpha} must lie between 0 and 1, e.g. 0.05.")
    values = np.asarray(scores, dtype=np.float64)
    members = np.arange(values.size) if groups is None else _codes(groups)
    if members.size != values.size:
        raise ValueError(f"{values.size} scores have {members.size} groups; give one for each.")
    sizes = np.bincount(members)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(1 / sizes[members[order]])  # Σ_k F_k at each score
    # 1e-9: both sides are often whole numbers, which floating point puts beside themselves
    k = int(np.searchsorted(reached, (sizes.size + 1) * (1 - alpha) - 1e-9))
    return float(values[order[k]]) if k < values.size else math.inf


def pixel_threshold_of(quantiles: Sequence[float] | np.ndarray) -> float:
    """Pixel threshold from each patient's own quantile of the heat of its pixels.

    The conformal threshold at one half, which is the median, and of an even number of patients the
    upper one of the two in the middle. So at least half of new normal patients have at most the
    chosen share of their pixels above it, with any number of patients and whatever their heat is.
    One odd patient moves it by no more than one place in the order of the others.

    Parameters
    ----------
    quantiles : sequence of float
        For each of the K ≥ 1 patients, the heat that the chosen share of its pixels exceeds.
    """
    return conformal_threshold(quantiles, PATIENT_RATE)


def median_interval(
    values: Sequence[float] | np.ndarray,
) -> tuple[tuple[float, float], float] | None:
    """Interval of the median that values are drawn around, and its confidence.

    From the r-th smallest to the r-th largest of n values, with the largest r that gives 95 %
    confidence (order statistics, binomial: holds for any continuous distribution; David, Nagaraja,
    2003, §7.1). With fewer than 6 values it is their whole range, whose confidence is 1 − 2¹⁻ⁿ.

    Returns
    -------
    ((float, float), float) or None
        None with fewer than two values: then nothing is known.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = ordered.size
    if count < 2:
        return None
    # probability that k of the values lie below the median, for k up to the middle
    below = [
        math.exp(
            math.lgamma(count + 1)
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            - count * math.log(2)
        )
        for k in range(count // 2)
    ]
    missed = 2 * np.cumsum(below)  # by the interval from place k + 1
    rank = max(1, int(np.searchsorted(missed, 1 - CONFIDENCE, side="right")))
    ends = float(ordered[rank - 1]), float(ordered[count - rank])
    return ends, float(1 - missed[rank - 1])


def kept_scores(scores: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Scores as a model keeps them: sorted, at most 1000, rounded to 4 significant digits."""
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if values.size > KEPT_SCORES:
        values = np.quantile(values, np.linspace(0, 1, KEPT_SCORES))
    return tuple(float(f"{value:.4g}") for value in values)


def _codes(groups: Sequence[Hashable]) -> np.ndarray:
    """Groups as numbers from 0, in the order in which they come up."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(group, len(known)) for group in groups], dtype=np.int64)


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return math.inf if value == "inf" else value


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a model and what they rest on.

    Attributes
    ----------
    pixel_threshold : float
        In units of the raw score map; the detector divides by it, so that heatmaps have it at 1.
    pixel_false_positive_rate : float
        At least half of new normal patients have at most this share of their foreground pixels
        above it.
    slice_threshold, volume_threshold : float
        In units of calibrated heatmaps; infinite where there were too few normals.
    false_positive_rate : float
        The rate of both.
    normal_pixels, normal_slices, normal_volumes, normal_patients : int
        What was counted.
    pixel_interval : (float, float), optional
        Between which values the pixel threshold would lie with many patients, in its units. None if
        that is not known: with one patient, and in models that were calibrated before patients were
        told apart.
    pixel_confidence : float
        Of the interval: 0.95 from 6 patients on, less with fewer.
    slice_scores, volume_scores : tuple of float
        Of the held-out normals, sorted, in units of calibrated heatmaps, with 4 digits. At most
        1000, which are quantiles of a larger set. Empty in models of older versions.
    typical_heat : tuple of float
        Median heat of each held-out normal study where it is above 0, kept in the same way.
    """

    pixel_threshold: float
    pixel_false_positive_rate: float
    slice_threshold: float
    volume_threshold: float
    false_positive_rate: float
    normal_pixels: int
    normal_slices: int
    normal_volumes: int
    normal_patients: int
    pixel_interval: tuple[float, float] | None = None
    pixel_confidence: float = 0.0
    slice_scores: tuple[float, ...] = ()
    volume_scores: tuple[float, ...] = ()
    typical_heat: tuple[float, ...] = ()

    @property
    def usual_heat(self) -> tuple[float, float] | None:
        """Between what the median heat of a study lies that is like the held-out normals.

        A study beyond it has another contrast, sequence or quality than those of the training:
        a lesion hardly moves a median. None in models of older versions, and of fewer than 5
        held-out studies.
        """
        return usual_range(self.typical_heat)

    def to_dict(self, *, scores: bool = True) -> dict[str, Any]:
        """JSON-able form, with the scores or without; an infinite threshold is ``"inf"``."""
        left_out = () if scores else ("slice_scores", "volume_scores", "typical_heat")
        return {k: _to_json(v) for k, v in asdict(self).items() if k not in left_out}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`; models of older versions lack what has a default.

        Raises
        ------
        ValueError
            If something is missing, not known, or no such number.
        """
        try:
            found = cls(**{name: _from_json(value) for name, value in data.items()})
            usable = found._is_usable()
        except (TypeError, AttributeError) as error:
            raise ValueError(f"the calibration of the model is damaged: {error}") from error
        if not usable:
            raise ValueError(
                f"the calibration of the model is damaged: {found.to_dict(scores=False)}; "
                "thresholds and counts must be numbers, and those of pixels finite and above 0."
            )
        return found

    def _is_usable(self) -> bool:
        """Whether all are numbers of their kind; `TypeError` if some are no numbers at all."""
        rates = (self.pixel_false_positive_rate, self.false_positive_rate)
        scores = (*self.slice_scores, *self.volume_scores, *self.typical_heat)
        finite = (*scores, *(self.pixel_interval or ()), self.pixel_confidence)
        counts = (self.normal_pixels, self.normal_slices, self.normal_volumes)
        return (
            0 < self.pixel_threshold < math.inf
            and all(0 < rate < 1 for rate in rates)
            and all(-math.inf < limit for limit in (self.slice_threshold, self.volume_threshold))
            and all(math.isfinite(value) for value in finite)
            and all(value >= 0 for value in (*counts, self.normal_patients, *self.typical_heat))
            and (self.pixel_interval is None or len(self.pixel_interval) == 2)
        )

    def summary(self) -> str:
        """One line for people, which says so where a threshold could not be set."""
        need = math.ceil(1 / self.false_positive_rate) - 1

        def tell(what: str, value: float, n: int) -> str:
            if math.isinf(value):
                return (
                    f"{what} threshold not set ({self.normal_patients} normal patients, at least "
                    f"{need} are needed)"
                )
            return f"{what} threshold {value:.3f} ({n} normals)"

        return "; ".join(
            [
                f"pixel threshold {self.pixel_threshold:.4g} = 1.0 in the heatmap "
                f"({self._pixel_promise()})",
                tell("slice", self.slice_threshold, self.normal_slices),
                tell("volume", self.volume_threshold, self.normal_volumes),
                f"false-positive rate {self.false_positive_rate:.0%} over "
                f"{self.normal_patients} patients",
            ]
        )

    def _pixel_promise(self) -> str:
        rate, patients = f"{self.pixel_false_positive_rate:.2%}", self.normal_patients
        if self.pixel_interval is None and patients > 1:  # of an older version
            return f"{rate} of {self.normal_pixels} normal pixels"
        promise = (
            f"at least half of new normal patients have at most {rate} of their pixels above it; "
        )
        if self.pixel_interval is None:
            return promise + "how sure it is is not known from one patient"
        low, high = self.pixel_interval
        return promise + (
            f"{self.pixel_confidence:.0%} interval over {patients} patients {low:.4g} to {high:.4g}"
        )

    def __str__(self) -> str:
        return json.dumps(self.to_dict())


@dataclass(frozen=True)
class UnifiedCalibration:
    """Thresholds of a model for several modalities, each with its own.

    Attributes
    ----------
    modalities : dict of str to Calibration
        By the name of the modality.
    """

    modalities: dict[str, Calibration]

    @property
    def pixel_threshold(self) -> float:
        """The largest unit of a modality: above it, none has more than its rate of normals."""
        return max(c.pixel_threshold for c in self.modalities.values())

    def to_dict(self, *, scores: bool = True) -> dict[str, Any]:
        """JSON-able form, from which `calibration_for` and `heat_unit` read."""
        each = {name: c.to_dict(scores=scores) for name, c in self.modalities.items()}
        return {"pixel_threshold": self.pixel_threshold, "modalities": each}

    def summary(self) -> str:
        """One line a modality, for people."""
        return "\n".join(f"{name}: {c.summary()}" for name, c in self.modalities.items())


def calibration_for(stored: Mapping[str, Any], modality: str | None) -> Calibration | None:
    """Calibration that applies to a study, out of what a package carries.

    Parameters
    ----------
    stored : mapping
        ``to_dict`` of a `Calibration` or a `UnifiedCalibration`; empty for a model without.
    modality : str or None
        Of the study.

    Raises
    ------
    ValueError
        If the model was not calibrated for the modality.
    """
    if not stored:
        return None
    if "modalities" not in stored:
        return Calibration.from_dict(stored)
    known = stored["modalities"]
    if not isinstance(known, Mapping):
        raise ValueError(f"the calibration of the model is damaged: modalities are {known!r}.")
    if modality not in known:
        raise ValueError(
            f"the model has no thresholds for {modality!r}; it was calibrated for {sorted(known)}. "
            "Train with normal studies of that modality."
        )
    return Calibration.from_dict(known[modality])


def check_calibration(stored: Mapping[str, Any]) -> None:
    """Refuse a calibration of which thresholds are missing or no numbers; none at all is good.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    for modality in stored.get("modalities") or (None,):
        heat_unit(stored, modality)


def heat_unit(stored: Mapping[str, Any], modality: str | None) -> float:
    """By what the network's heatmap is divided so that 1.0 is the threshold of the modality.

    1.0 for a model of one modality, whose network is calibrated in itself.
    """
    calibration = calibration_for(stored, modality)
    if calibration is None or "modalities" not in stored:
        return 1.0
    common = stored.get("pixel_threshold")
    if not isinstance(common, float) or not 0 < common < math.inf:
        raise ValueError(f"the calibration of the model is damaged: pixel_threshold is {common!r}.")
    return calibration.pixel_threshold / common
