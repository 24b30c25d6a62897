"""The scoring options that every experiment reports."""

from __future__ import annotations

from typing import Any

from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.training.method import Method

#: Options of :class:`~mcmiad_monai.networks.score.AnomalyScore` by their name in the tables; none
#: needs another training.
SCORES: dict[str, dict[str, Any]] = {
    "S_MSE + S_cos (Eq. 6)": {"terms": "both"},
    "0.7 S_MSE + 0.3 S_cos": {"terms": "both", "mse_weight": 0.7},
    "0.7 mean S_MSE + 0.3 S_cos": {"terms": "both", "mse_weight": 0.7, "mse_reduction": "mean"},
    "S_MSE": {"terms": "mse"},
    "S_cos": {"terms": "cos"},
    "S_cos, smoothed": {"terms": "cos", "smooth_sigma": 4.0},
}
OWN = "score of the method"


def scores_of(method: Method) -> dict[str, dict[str, Any]]:
    """Scoring options by name; the method's own among them, under `score_name`."""
    own, default = method.score_options(), AnomalyScore().config
    kept = {"top_k": method.top_k, "align_corners": method.align_corners}
    plain = {**{key: default[key] for key in own if key in default}, **kept}
    each = {name: {**plain, **options} for name, options in SCORES.items()}
    return each if own in each.values() else {**each, OWN: own}


def score_name(method: Method) -> str:
    """Name of the score that the method itself uses."""
    own = method.score_options()
    return next(name for name, options in scores_of(method).items() if options == own)
