"""AUROC, average precision and the best F1, exact for lists and from pairs of histograms.

What one class alone leaves undefined is NaN (never 0.5), and an AUROC below 0.5 stays below 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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


def histogram_auroc(positive: Tensor, negative: Tensor) -> float:
    """AUROC of two histograms over the same bins; scores that share a bin count as ties."""
    n_positive, n_negative = positive.sum(), negative.sum()
    if n_positive == 0 or n_negative == 0:
        return math.nan
    below = negative.cumsum(0) - negative
    wins = (positive * (below + 0.5 * negative)).sum()
    return float(wins / (n_positive * n_negative))


def histogram_average_precision(positive: Tensor, negative: Tensor) -> float:
    """Average precision of two histograms, with one threshold a bin."""
    if positive.sum() == 0 or negative.sum() == 0:
        return math.nan
    hits, called = _above(positive), _above(positive + negative)
    precision = hits / called.clamp_min(1)
    return float((positive * precision).sum() / positive.sum())


def histogram_f1_max(positive: Tensor, negative: Tensor, edges: Tensor) -> BestF1:
    """Best F1 over thresholds at the lower edges (bins,) of the bins."""
    if positive.sum() == 0 or negative.sum() == 0:
        return BestF1(math.nan, math.nan)
    hits, called = _above(positive), _above(positive + negative)
    f1 = 2 * hits / (called + positive.sum())
    best = int(torch.argmax(f1))
    return BestF1(float(f1[best]), float(edges[best]))


def _above(counts: Tensor) -> Tensor:
    """Counts in each bin and all above it."""
    return counts.flip(0).cumsum(0).flip(0)
