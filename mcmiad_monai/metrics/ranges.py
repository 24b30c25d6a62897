"""How far from each other values of one kind lie, of which a few may be odd."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

#: Of fewer studies none is called far from the others.
MIN_STUDIES = 5
#: Robust standard deviations from the median, on a log scale, beyond which a study is far from the
#: others: among normally distributed studies one is so in 6 % of draws of 5, in 1 % of draws of 50.
LIMIT = 4.5
#: Smallest robust standard deviation: nothing within a factor of exp(LIMIT · FLOOR) = 1.57 is far.
FLOOR = 0.1
#: Share of studies like the held-out normals whose median heat is beyond the usual range.
UNUSUAL = 0.01
#: Smallest standard deviation of the logarithms of median heats, against held-out studies that are
#: alike by chance or come from one scanner.
SPREAD_FLOOR = 0.05
#: What is smaller counts as this.
TINY = 1e-9


def robust_range(logs: np.ndarray) -> tuple[float, float]:
    """Median of logarithms, and how far from it a value is far from the others.

    `LIMIT` robust standard deviations (1.4826 · median absolute deviation, at least `FLOOR`).
    """
    middle = float(np.median(logs))
    return middle, LIMIT * max(1.4826 * float(np.median(np.abs(logs - middle))), FLOOR)


def usual_range(values: Sequence[float]) -> tuple[float, float] | None:
    """Between what one more value of the same kind lies, but for `UNUSUAL`; None from fewer than 5.

    The prediction interval of Student's t for normally distributed logarithms, without the values
    that `robust_range` calls far: one odd value would widen it for all.
    """
    if len(values) < MIN_STUDIES:
        return None
    logs = np.log(np.maximum(values, TINY))
    middle, reach = robust_range(logs)
    near = logs[np.abs(logs - middle) <= reach]
    middle, count = float(near.mean()), near.size
    spread = max(float(near.std(ddof=1)), SPREAD_FLOOR) * math.sqrt(1 + 1 / count)
    reach = float(stdtrit(count - 1, 1 - UNUSUAL / 2)) * spread
    return math.exp(middle - reach), math.exp(middle + reach)
