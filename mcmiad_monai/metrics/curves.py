"""AUROC, average precision and the best F1 of lists of scores, exact.

A figure is NaN (never 0.5) where only one class is present; an AUROC below 0.5 stays below 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Scores = Sequence[float] | np.ndarray
Labels = Sequence[int] | np.ndarray


class BestF1(NamedTuple):
    """The best F1 of any threshold, and the score from which on it calls anomalous."""

    f1: float
    threshold: float


def auroc(scores: Scores, labels: Labels) -> float:
    """Exact AUROC of scores against 0/1 labels; NaN if only one class is present."""
    from sklearn.metrics import roc_auc_score

    truth = np.asarray(labels).astype(bool)
    if one_class(truth):
        return math.nan
    return float(roc_auc_score(truth, np.asarray(scores)))


def average_precision(scores: Scores, labels: Labels) -> float:
    """Exact average precision; NaN if only one class is present."""
    from sklearn.metrics import average_precision_score

    truth = np.asarray(labels).astype(bool)
    if one_class(truth):
        return math.nan
    return float(average_precision_score(truth, np.asarray(scores)))


def f1_max(scores: Scores, labels: Labels) -> BestF1:
    """Exact best F1 over all thresholds; NaN if only one class is present."""
    from sklearn.metrics import precision_recall_curve

    truth = np.asarray(labels).astype(bool)
    if one_class(truth):
        return BestF1(math.nan, math.nan)
    precision, recall, thresholds = precision_recall_curve(truth, np.asarray(scores))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best = int(f1[:-1].argmax())  # the last point has no threshold
    return BestF1(float(f1[best]), float(thresholds[best]))


def one_class(truth: np.ndarray) -> bool:
    """Whether labels hold fewer than two classes."""
    return bool(truth.size == 0 or truth.all() or not truth.any())
