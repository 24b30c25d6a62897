from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mcmiad_monai.metrics.histogram import (
    BITS,
    HIGHEST,
    LOWEST,
    ScoreHistogram,
    bin_of,
)


def histogram_of(*batches: torch.Tensor, bits: int = BITS) -> ScoreHistogram:
    histogram = ScoreHistogram(bits)
    for batch in batches:
        histogram.update(batch)
    return histogram


def log_scores(count: int = 10_000, seed: int = 0) -> torch.Tensor:
    """Scores over eight orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return 10 ** (8 * torch.rand(count, generator=generator) - 4)


@pytest.mark.parametrize("bits", [3, BITS])
@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.995, 1.0])
def test_quantile_agrees_with_numpy_to_the_relative_width(bits: int, q: float) -> None:
    scores = log_scores()
    histogram = histogram_of(scores, bits=bits)
    found = histogram.quantile(q)
    exact = float(np.quantile(scores.double().numpy(), q, method="inverted_cdf"))
    # the upper edge of the bin that holds it; 1e-6 for float32 at an edge
    assert exact * (1 - 1e-6) <= found <= exact * (1 + 2.0**-bits) * (1 + 1e-6)


def test_weights_are_what_scores_count_for() -> None:
    scores = torch.tensor([0.5, 0.5, 2.0])
    histogram = ScoreHistogram()
    histogram.update(scores, torch.tensor([0.25, 0.5, 3.0]))
    assert histogram.counts[bin_of(scores, BITS)].tolist() == [0.75, 0.75, 3.0]


@pytest.mark.parametrize("bits", [-1, 24])
def test_resolution_beyond_a_float_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="0 to 23"):
        ScoreHistogram(bits)


def test_batches_and_chunks_of_any_shape_equal_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = log_scores(6000)
    expected = histogram_of(scores).counts
    monkeypatch.setattr("mcmiad_monai.metrics.histogram.CHUNK", 7)
    parts = histogram_of(scores[:1].reshape(1, 1), scores[1:2001], scores[2001:].reshape(31, 3, 43))
    assert torch.equal(parts.counts, expected)
    assert parts.total == 6000


@pytest.mark.parametrize("bits", [0, 7, BITS])
def test_no_score_is_lost_at_either_end(bits: int) -> None:
    ends = torch.tensor([0.0, 1e-30, 9e-7, HIGHEST, 1.1 * HIGHEST, 3e38])
    histogram = histogram_of(ends, bits=bits)
    assert histogram.total == 6
    assert histogram.counts[0] == 3
    assert histogram.counts[-1] == 3


def test_zeros_lie_below_every_score() -> None:
    histogram = histogram_of(torch.tensor([0.0] * 9 + [5.0]))
    assert histogram.quantile(0.9) <= LOWEST
    assert histogram.quantile(0.91) == pytest.approx(5, rel=1e-3)


def test_nothing_counted_has_no_quantile() -> None:
    assert math.isnan(ScoreHistogram().quantile(0.5))
    empty = histogram_of(torch.zeros(0, 3))
    assert empty.total == 0
    assert math.isnan(empty.quantile(0.5))


@pytest.mark.parametrize("bad", [-1e-3, math.nan, math.inf])
def test_impossible_scores_are_refused_and_nothing_is_counted(bad: float) -> None:
    histogram = ScoreHistogram()
    with pytest.raises(ValueError, match=r"finite and >= 0.*overflow"):
        histogram.update(torch.tensor([0.5, bad, 2.0]))
    assert histogram.total == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_counted_by_their_value(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.25, 1.0, 4.0], requires_grad=True)  # exact in all of them
    assert torch.equal(histogram_of(scores.to(dtype)).counts, histogram_of(scores).counts)
