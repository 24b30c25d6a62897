from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.exceptions import NotComputableError
from sklearn.metrics import roc_auc_score

from mcmiad_monai.metrics import PixelAUROC, ScoreHistogram, SliceAUROC, auroc


def scores_and_labels(n: int, seed: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.2
    scores = rng.gamma(2.0, 1.0, n) + 0.8 * labels
    return (np.round(scores, 1) if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_that_of_scikit_learn(ties: bool) -> None:
    scores, labels = scores_and_labels(500, 0, ties=ties)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_below_half_is_not_flipped() -> None:
    assert auroc(np.array([3.0, 2.0, 1.0]), np.array([0, 0, 1])) == 0.0


def test_one_class_has_no_auroc() -> None:
    assert math.isnan(auroc(np.array([1.0, 2.0]), np.array([0, 0])))
    metric = PixelAUROC()
    metric.update((torch.rand(4), torch.zeros(4)))
    assert math.isnan(metric.compute())


def test_slice_auroc_streams() -> None:
    scores, labels = scores_and_labels(301, 1, ties=True)
    metric = SliceAUROC()
    for part in np.array_split(np.arange(301), 7):
        metric.update((torch.from_numpy(scores[part]), torch.from_numpy(labels[part])))
    assert metric.compute() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    metric.reset()
    with pytest.raises(NotComputableError):
        metric.compute()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_pixel_auroc_is_exact_to_its_bins_at_any_scale(scale: float) -> None:
    scores, labels = scores_and_labels(20000, 2)
    metric = PixelAUROC()
    for part in np.array_split(np.arange(20000), 3):
        heat = torch.from_numpy(scores[part] * scale)
        metric.update((heat, torch.from_numpy(labels[part]).float()))
    assert metric.compute() == pytest.approx(roc_auc_score(labels, scores), abs=2e-4)


def test_pixel_auroc_counts_ties_half() -> None:
    metric = PixelAUROC()
    metric.update((torch.zeros(10), torch.tensor([1.0] * 3 + [0.0] * 7)))
    assert metric.compute() == 0.5


def test_pixel_auroc_refuses_another_grid() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        PixelAUROC().update((torch.rand(4, 4), torch.rand(4, 5)))


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95, 0.995])
def test_quantile_is_right_to_the_width_of_a_bin(q: float) -> None:
    values = np.random.default_rng(3).lognormal(0, 2, 5000).astype(np.float32)
    histogram = ScoreHistogram()
    for part in np.array_split(values, 4):
        histogram.update(torch.from_numpy(part))
    exact = np.quantile(values, q, method="inverted_cdf")
    assert histogram.quantile(q) == pytest.approx(exact, rel=2 * histogram.relative_width)
    assert histogram.total == 5000


def test_merged_histograms_are_one() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    whole, left, right = ScoreHistogram(), ScoreHistogram(), ScoreHistogram()
    whole.update(values)
    left.update(values[:300])
    right.update(values[300:])
    left.merge(right)
    assert torch.equal(left.counts, whole.counts)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_scores_that_cannot_be_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and >= 0"):
        ScoreHistogram().update(torch.tensor([0.1, bad]))


def test_empty_histogram_has_no_quantile() -> None:
    histogram = ScoreHistogram()
    histogram.update(torch.zeros(0))
    assert math.isnan(histogram.quantile(0.5))
