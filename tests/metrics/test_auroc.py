from __future__ import annotations

import itertools
import math

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from sklearn.metrics import roc_auc_score

from mcmiad_monai.metrics.curves import auroc
from mcmiad_monai.metrics.pixels import PixelMetrics
from mcmiad_monai.metrics.slices import SliceAUROC

Metric = type[SliceAUROC] | type[PixelMetrics]
BOTH = pytest.mark.parametrize("metric", [SliceAUROC, PixelMetrics])


def pixels(
    count: int = 4000, *, seed: int = 0, shift: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive scores, a tenth of them of lesions, which are higher by a factor."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, generator=generator) < 0.1
    scores = torch.exp(torch.randn(count, generator=generator) + shift * labels)
    return scores, labels.int()


def auroc_of(found: float | dict[str, float]) -> float:
    return found["pixel_auroc"] if isinstance(found, dict) else found


def computed(
    metric: SliceAUROC | PixelMetrics, *batches: tuple[torch.Tensor, torch.Tensor]
) -> float:
    metric.reset()
    for batch in batches:
        metric.update(batch)
    return auroc_of(metric.compute())


@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 3.0])
def test_auroc_is_that_of_scikit_learn(shift: float) -> None:
    scores, labels = pixels(shift=shift)
    expected = roc_auc_score(labels, scores)
    assert computed(SliceAUROC(), (scores, labels)) == expected
    assert auroc(scores.tolist(), labels.tolist()) == pytest.approx(expected, abs=1e-12)
    assert computed(PixelMetrics(), (scores, labels)) == pytest.approx(expected, abs=1e-4)


@BOTH
def test_ties_count_half(metric: Metric) -> None:
    scores = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    labels = torch.tensor([0, 0, 1, 0, 1, 1, 0])
    # lesion 0: 2 ties of 4; lesion 1: 2 wins and a tie; lesion 2: 3 wins and a tie
    by_hand = (2 * 0.5 + 2.5 + 3.5) / 12
    assert roc_auc_score(labels, scores) == pytest.approx(by_hand)
    assert computed(metric(), (scores, labels)) == pytest.approx(by_hand)


@BOTH
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_nan(metric: Metric, label: int) -> None:
    assert math.isnan(computed(metric(), (torch.rand(5), torch.full((5,), label))))
    assert math.isnan(auroc([], []))


@BOTH
def test_empty_batches_are_no_scores(metric: Metric) -> None:
    empty = (torch.zeros(0), torch.zeros(0))
    assert math.isnan(computed(metric(), empty))
    scores, labels = pixels(300)
    expected = computed(metric(), (scores, labels))
    assert computed(metric(), empty, (scores, labels), empty) == expected


@BOTH
def test_streamed_batches_equal_one_batch(metric: Metric) -> None:
    scores, labels = pixels(3000)
    cuts = [0, 1, 700, 701, 2500, 3000]
    parts = [(scores[a:b], labels[a:b]) for a, b in itertools.pairwise(cuts)]
    assert any(not y.any() for _, y in parts)  # a batch of one class is only a batch
    whole = computed(metric(), (scores, labels))
    assert computed(metric(), *parts) == pytest.approx(whole, abs=1e-12)
    assert computed(metric(), *parts[::-1]) == pytest.approx(whole, abs=1e-12)


@BOTH
def test_metric_can_be_asked_in_between(metric: Metric) -> None:
    first, second = pixels(200), pixels(300, seed=1)
    used = metric()
    computed(used, first)
    used.update(second)
    assert auroc_of(used.compute()) == pytest.approx(computed(metric(), first, second), abs=1e-12)


@BOTH
def test_engine_epoch_starts_the_metric_anew(metric: Metric) -> None:
    batches = [pixels(100, seed=s) for s in range(3)]
    engine = Engine(lambda _engine, batch: batch)
    metric().attach(engine, "auroc")
    engine.run(batches, max_epochs=2)
    found = auroc_of(engine.state.metrics["auroc"])
    assert found == pytest.approx(computed(metric(), *batches), abs=1e-12)


def test_volumes_are_counted_voxel_by_voxel_and_any_label_above_zero_is_lesion() -> None:
    scores, labels = pixels(3 * 4 * 5 * 6)
    volume, mask = scores.reshape(1, 3, 4, 30), 2.5 * labels.reshape(1, 3, 4, 30)
    assert computed(PixelMetrics(), (volume, mask)) == computed(PixelMetrics(), (scores, labels))


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) and mask \(1, 2, 8\) differ"):
        PixelMetrics().update((torch.rand(1, 4, 4), torch.zeros(1, 2, 8)))
    metric = SliceAUROC()
    with pytest.raises(ValueError, match="3 scores and 2 labels"):
        metric.update((torch.rand(3), torch.tensor([0, 1])))
    # half an update would pair the next scores with wrong labels
    with pytest.raises(NotComputableError, match="at least one update"):
        metric.compute()


@BOTH
def test_scores_that_are_not_numbers_are_refused(metric: Metric) -> None:
    with pytest.raises(ValueError, match=r"finite|NaN"):
        computed(metric(), (torch.tensor([math.nan, 1.0, 2.0]), torch.tensor([0, 1, 0])))
