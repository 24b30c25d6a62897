"""The scoring options that every experiment reports."""

from __future__ import annotations

from typing import Any

from mcmiad_monai.networks.memory import DISTANCES
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.training.method import Method

#: Options of :class:`~mcmiad_monai.networks.score.AnomalyScore` by their name in the tables, for
#: the head; none needs another training.
SCORES: dict[str, dict[str, Any]] = {
    "S_MSE + S_cos (Eq. 6)": {"terms": "both"},
    "0.7 S_MSE + 0.3 S_cos": {"terms": "both", "mse_weight": 0.7},
    "0.7 mean S_MSE + 0.3 S_cos": {"terms": "both", "mse_weight": 0.7, "mse_reduction": "mean"},
    "S_MSE": {"terms": "mse"},
    "S_cos": {"terms": "cos"},
    "S_cos, smoothed": {"terms": "cos", "smooth_sigma": 4.0},
}
#: Those of the memories.
MEMORY_SCORES = tuple(f"memory-{distance}" for distance in DISTANCES)
OWN = "score of the method"
#: All that a table can name.
NAMES = (*SCORES, *MEMORY_SCORES, OWN)


def scores_of(method: Method) -> dict[str, dict[str, Any]]:
    """Scoring options by name, of the parts that the method has.

    The method's own score is among them, under `score_name`, but where it is chosen at the end of
    the training: then the detector has it.
    """
    own, default = method.score_options(), AnomalyScore().config
    kept = {"top_k": method.top_k, "align_corners": method.align_corners}
    plain = {**{key: default[key] for key in own if key in default}, **kept}
    each = {name: {**plain, **options} for name, options in SCORES.items() if method.trains_head}
    for distance in method.memories:
        way = {"smooth_sigma": 0.0, "symmetry": 0.0, "image_score": default["image_score"]}
        name = f"memory-{distance}"
        each[name] = {**own, **way, "sources": {name: 1.0}}
    return each if method.chooses_score or own in each.values() else {**each, OWN: own}


def score_name(method: Method) -> str:
    """Name of the score that the method itself uses."""
    if method.chooses_score:
        return OWN
    own = method.score_options()
    return next(name for name, options in scores_of(method).items() if options == own)
