"""From the scores of held-out normal studies to thresholds with a stated false-positive rate.

Three thresholds are stored with a model: for pixels (the unit of the heatmap: 1.0 is the
threshold), for slices and for volumes. Slice and volume thresholds are split-conformal quantiles
(Vovk et al., 2005): a new normal exceeds them with at most the chosen probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

#: Share of normal foreground pixels above the pixel threshold.
PIXEL_FALSE_POSITIVE_RATE = 0.005
#: Share of normal slices and volumes above their thresholds.
FALSE_POSITIVE_RATE = 0.05


def conformal_threshold(scores: Sequence[float] | np.ndarray, alpha: float) -> float:
    """Threshold that a new normal exceeds with probability at most ``alpha``.

    It is the ⌈(n + 1)(1 − α)⌉-th smallest of the n normal scores, and infinite when n is too small
    for the rate: then no finite threshold keeps the promise.

    Raises
    ------
    ValueError
        If ``alpha`` is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"false-positive rate {alpha} must lie between 0 and 1, e.g. 0.05.")
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    # 1e-9: (n + 1)(1 − α) is often a whole number, which floating point may put just above itself
    k = math.ceil((ordered.size + 1) * (1 - alpha) - 1e-9)
    return float(ordered[k - 1]) if k <= ordered.size else math.inf


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a model and what they rest on.

    Attributes
    ----------
    pixel_threshold : float
        In units of the raw score map; the detector divides by it, so that heatmaps have it at 1.
    pixel_false_positive_rate : float
        Share of normal foreground pixels above it.
    slice_threshold, volume_threshold : float
        In units of calibrated heatmaps; infinite where there were too few normals.
    false_positive_rate : float
        The rate of both.
    normal_pixels, normal_slices, normal_volumes : int
        What was counted.
    """

    pixel_threshold: float
    pixel_false_positive_rate: float
    slice_threshold: float
    volume_threshold: float
    false_positive_rate: float
    normal_pixels: int
    normal_slices: int
    normal_volumes: int

    def to_dict(self) -> dict[str, float | int | str]:
        """JSON-able form; an infinite threshold is the string ``"inf"``."""
        return {
            key: ("inf" if isinstance(value, float) and math.isinf(value) else value)
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: dict[str, float | int | str]) -> Calibration:
        """Inverse of :meth:`to_dict`."""
        return cls(**{k: (math.inf if v == "inf" else v) for k, v in data.items()})  # type: ignore[arg-type]

    def summary(self) -> str:
        """One line for people, which says so where a threshold could not be set."""
        need = math.ceil(1 / self.false_positive_rate) - 1

        def tell(what: str, value: float, n: int) -> str:
            if math.isinf(value):
                return f"{what} threshold not set ({n} normals, at least {need} are needed)"
            return f"{what} threshold {value:.3f} ({n} normals)"

        return "; ".join(
            [
                f"pixel threshold {self.pixel_threshold:.4g} = 1.0 in the heatmap "
                f"({self.pixel_false_positive_rate:.2%} of {self.normal_pixels} normal pixels)",
                tell("slice", self.slice_threshold, self.normal_slices),
                tell("volume", self.volume_threshold, self.normal_volumes),
                f"false-positive rate {self.false_positive_rate:.0%}",
            ]
        )

    def __str__(self) -> str:
        return json.dumps(self.to_dict())
