"""Healthy studies that are far from the others, by a robust rule; no labels are needed.

An odd study is named and decides nothing alone; what follows from it is for a person to say.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.ranges import MIN_STUDIES, TINY, robust_range

logger = logging.getLogger(__name__)

#: Added to values that are 0 for most studies: with the floor, 0.11 more than usual is odd.
OFFSET = 0.2
#: Slices of a study that are looked at, evenly spaced.
SLICES = 16

HEAT = "heat that its hottest pixels exceed"
FEATURES = "distance of its mean features from the median study"
FIELD_OF_VIEW = "share of foreground in its slices"
BORDER = "share of foreground at the border of its slices"


def odd_values(values: Mapping[str, float], what: str, *, offset: float = 0.0) -> dict[str, str]:
    """Studies whose value is far from those of the others.

    Far is beyond `robust_range`, on a log scale.

    Parameters
    ----------
    values : mapping of str to float
        Case → value, at least 0.
    what : str
        Its name in the reason.
    offset : float
        Added before the logarithm.

    Returns
    -------
    dict of str to str
        Case → reason; empty with fewer than 5 studies.
    """
    if len(values) < MIN_STUDIES:
        return {}
    logs = np.log(np.maximum(list(values.values()), TINY) + offset)
    middle, reach = robust_range(logs)
    low, median, high = np.exp([middle - reach, middle, middle + reach]) - offset
    return {
        case: f"{what} is {value:.3g}; the median of {len(values)} studies is {median:.3g}, and "
        f"usual is {max(low, 0):.3g} to {high:.3g}"
        for (case, value), log in zip(values.items(), logs, strict=True)
        if abs(log - middle) > reach
    }


def odd_training_studies(data: FeatureDataset) -> dict[str, str]:
    """Normal studies whose features or field of view are far from those of the others.

    Modalities are compared each within itself. At most 16 slices of a study are read.

    Returns
    -------
    dict of str to str
        Case → reason.
    """
    rows = [i for i, record in enumerate(data.records) if not record.anomalous]
    return odd_studies(data, rows)


def odd_studies(
    data: FeatureDataset, rows: Sequence[int], heat: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Studies among slices of a dataset that are odd by features, field of view or heat.

    Parameters
    ----------
    rows : sequence of int
        Slices to look at.
    heat : mapping of str to float, optional
        Case → heat under a model.

    Returns
    -------
    dict of str to str
        Case → its reasons.
    """
    slices: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        slices[data.records[row].modality][data.records[row].case].append(row)
    reasons: dict[str, list[str]] = defaultdict(list)
    for of_case in slices.values():
        if len(of_case) < MIN_STUDIES:
            continue
        measures = measures_of(data, of_case)
        if heat:
            measures[HEAT] = {case: heat[case] for case in of_case if case in heat}
        for what, values in measures.items():
            offset = OFFSET if what == BORDER else 0.0
            for case, reason in odd_values(values, what, offset=offset).items():
                reasons[case].append(reason)
    return {case: "; ".join(each) for case, each in reasons.items()}


def measures_of(
    data: FeatureDataset, slices: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Features and field of view of studies: measure → case → value."""
    means, shares, borders = [], {}, {}
    for case, rows in slices.items():
        chosen = np.linspace(0, len(rows) - 1, min(len(rows), SLICES)).round().astype(int)
        some = [rows[i] for i in chosen]
        inside = data.foreground(some).float()  # (n, 1, S, S)
        shares[case] = float(inside.mean())
        edges = [inside[..., 0], inside[..., -1], inside[..., 0, :], inside[..., -1, :]]
        borders[case] = float(torch.stack(edges).mean())
        features = data.batch(some)  # (n, C, g, g)
        weights = F.adaptive_avg_pool2d(inside, features.shape[-1])  # (n, 1, g, g)
        total = (features * weights).sum((0, 2, 3))
        means.append(total / weights.sum().clamp_min(1e-6))
    each = torch.stack(means).double().numpy()  # (studies, C)
    away = np.abs(each - np.median(each, 0))
    spread = np.maximum(np.median(away, 0), 1e-3 * np.abs(each).max(0) + TINY)  # (C,)
    distance = np.median(away / spread, 1)  # of the median channel
    return {
        FEATURES: dict(zip(slices, distance.tolist(), strict=True)),
        FIELD_OF_VIEW: shares,
        BORDER: borders,
    }


def log_odd(part: str, odd: Mapping[str, str]) -> None:
    """Name odd studies of a part on the screen."""
    for case, reason in odd.items():
        logger.warning("odd healthy study among the %s ones: %s (%s)", part, case, reason)
