from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from mcmiad_monai.metrics.curves import average_precision, f1_max
from mcmiad_monai.metrics.histogram import BITS
from mcmiad_monai.metrics.pixels import PixelMetrics

KINDS = ["separate", "overlapping", "few lesions", "heavy ties", "worse than chance", "narrow"]


def pixels(kind: str, count: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels of pixels, as heatmaps have them."""
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    share = 0.002 if kind == "few lesions" else 0.1
    labels = torch.rand(count, generator=generator) < share
    shift = {"separate": 3.0, "worse than chance": -0.7}.get(kind, 1.0)
    spread = 0.1 if kind == "narrow" else 1.0
    scores = torch.exp(spread * (torch.randn(count, generator=generator) + shift * labels))
    if kind == "heavy ties":
        scores = (scores * 2).round().clamp(max=6)  # zero among them, as outside the foreground
    return scores, labels.int()


def best_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """The definition, threshold by threshold."""
    return max(f1_score(labels, scores >= t) for t in np.unique(scores))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [3, BITS])
def test_pixel_figures_are_those_of_scikit_learn_for_scores_rounded_down(
    kind: str, bits: int
) -> None:
    scores, labels = pixels(kind)
    metric = PixelMetrics(bits=bits)
    for part in torch.arange(len(scores)).split(9999):
        metric.update((scores[part], labels[part]))
    found = metric.compute()
    # a float cut off after its first bits; below 2⁻²⁰ there are none in these
    rounded = (scores.numpy().view(np.int32) & -1 << (23 - bits)).view(np.float32)
    for given, near in ((rounded, 1e-12), (scores.numpy(), 2.0**-bits)):
        precision, recall, _ = precision_recall_curve(labels, given)
        f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        assert found["pixel_auroc"] == pytest.approx(roc_auc_score(labels, given), abs=near)
        assert found["pixel_ap"] == pytest.approx(average_precision_score(labels, given), abs=near)
        assert found["pixel_f1_max"] == pytest.approx(f1, abs=near)
    assert found["pixel_dice_at_threshold"] == pytest.approx(
        f1_score(labels, scores > 1), abs=1e-12
    )
    at_threshold = f1_score(labels, scores >= found["pixel_f1_max_threshold"])
    assert at_threshold == pytest.approx(found["pixel_f1_max"], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_slice_figures_are_exact(kind: str) -> None:
    scores, labels = (part.numpy() for part in pixels(kind, 400))
    labels[:3] = 1
    assert average_precision(scores, labels) == average_precision_score(labels, scores)
    best = f1_max(scores, labels)
    assert best.f1 == pytest.approx(best_f1(scores, labels), abs=1e-12)
    assert f1_score(labels, scores >= best.threshold) == pytest.approx(best.f1, abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_undefined(label: int) -> None:
    labels = torch.full((5,), label)
    metric = PixelMetrics()
    metric.update((torch.rand(5), labels))
    found = metric.compute()
    undefined = {"pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold"}
    assert all(math.isnan(found[name]) for name in undefined)
    assert math.isnan(found["pixel_dice_at_threshold"]) == (label == 0)
    assert math.isnan(average_precision(np.ones(3), np.full(3, label)))
    assert math.isnan(f1_max(np.ones(3), np.full(3, label)).f1)


def test_an_update_with_a_bad_pixel_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcmiad_monai.metrics.pixels.CHUNK", 7)
    scores, labels = pixels("overlapping", 100)
    metric = PixelMetrics()
    metric.update((scores, labels))
    before = metric.compute()
    bad = scores.clone()
    bad[-1] = math.inf
    with pytest.raises(ValueError, match="overflow"):
        metric.update((bad, labels))
    assert metric.compute() == before


def test_threshold_can_be_chosen() -> None:
    metric = PixelMetrics(threshold=2.5)
    metric.update((torch.tensor([1.0, 2.0, 3.0, 2.5]), torch.tensor([0, 1, 1, 1])))
    assert metric.compute()["pixel_dice_at_threshold"] == pytest.approx(2 * 1 / (1 + 3))
