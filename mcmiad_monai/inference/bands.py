"""Severity bands of a heatmap, and their names: one for all that gives labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Labels of mask and bands, by value. A mask has the first only.
LABELS = {1: "anomaly", 2: "anomaly: moderate", 3: "anomaly: severe"}
#: Lower limits of the bands in multiples of the mask's threshold, doubling from band to band.
BAND_LIMITS = (1.0, 2.0, 4.0)


def labels_of(
    heatmap: NDArray[np.float32], *, threshold: float, bands: bool, dtype: Any = np.uint8
) -> NDArray[Any]:
    """Labels (X, Y, Z) of a heatmap (X, Y, Z).

    Parameters
    ----------
    threshold : float
        Of the mask, in units of the heatmap.
    bands : bool
        1, 2, 3 above 1, 2, 4 times the threshold; else 1 above it.
    """
    labels = np.zeros(heatmap.shape, dtype=dtype)
    for limit in BAND_LIMITS if bands else BAND_LIMITS[:1]:
        labels += (heatmap > limit * threshold).astype(dtype)
    return labels
