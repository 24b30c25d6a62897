"""A histogram of non-negative scores that streams and has bins of equal relative width.

The bin of a score is given by the first bits of its float32: the exponent and the leading bits of
the mantissa. So the relative resolution is the same for raw squared feature distances and for
calibrated heatmaps, and no range has to be known beforehand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcmiad_monai.metrics.curves import BestF1

#: Leading bits of the mantissa: 327,682 bins (2.6 MB), each at most 2⁻¹³ = 0.012 % wide. With 11,
#: average precision and best F1 are off by 1e-4 where scores lie close together.
BITS = 13
#: Scores below 2⁻²⁰ are "zero" (bin 0); scores from 2²⁰ on fall into the last bin.
LOWEST, HIGHEST = 2.0**-20, 2.0**20
_OCTAVES = 40
_MANTISSA = 23
_LOWEST_BITS = (127 - 20) << _MANTISSA
#: Scores counted at a time: bounds the working memory of an update to about 20 MB.
CHUNK = 1_000_000


class ScoreHistogram:
    """Counts of scores in bins of equal relative width.

    Parameters
    ----------
    bits : int
        Leading bits of the mantissa, 0 to 23; there are 40 · 2^bits + 2 bins, which are at most
        2^-bits of their scores wide.
    """

    def __init__(self, bits: int = BITS) -> None:
        if not 0 <= bits <= _MANTISSA:
            raise ValueError(f"bits is {bits}; the mantissa of a float32 has 0 to {_MANTISSA}.")
        self.bits = bits
        self.bins = bin_count(bits)
        self.counts = torch.zeros(self.bins, dtype=torch.float64)

    def update(self, scores: Tensor, weights: Tensor | None = None) -> None:
        """Count scores of any shape; they must be finite and not negative.

        Parameters
        ----------
        scores : Tensor
        weights : Tensor of the same shape, optional
            What each score counts for.

        Raises
        ------
        ValueError
            If a score is negative, NaN or infinite.
        """
        flat = scores.detach().reshape(-1)
        require_scores(flat)
        if weights is not None:
            # sums of fractions depend on their order, which a GPU does not keep
            shares = weights.reshape(-1).double().cpu()
            self.counts += torch.bincount(bin_of(flat, self.bits).cpu(), shares, self.bins)
            return
        for chunk in torch.split(flat, CHUNK):
            counts = torch.bincount(bin_of(chunk, self.bits), minlength=self.bins)
            self.counts += counts.cpu()

    @property
    def total(self) -> int:
        """Number of scores counted."""
        return int(self.counts.sum().item())

    def quantile(self, q: float) -> float:
        """Score below or at which a share ``q`` of all scores lies, to the width of a bin.

        Returns
        -------
        float
            Upper edge of the bin that holds the quantile, 2²⁰ where that is the last bin; NaN if
            nothing was counted.
        """
        if self.total == 0:
            return math.nan
        cumulative = self.counts.cumsum(0)
        index = int(torch.searchsorted(cumulative, q * cumulative[-1]).clamp(max=self.bins - 1))
        return float(lower_edges(self.bits)[min(index + 1, self.bins - 1)])


def bin_count(bits: int) -> int:
    """Number of bins: of 40 powers of two, and one at either end."""
    return _OCTAVES * (1 << bits) + 2


def bin_of(scores: Tensor, bits: int) -> Tensor:
    """Bin of each score, int32 of the same shape; scores are not negative."""
    shift = _MANTISSA - bits
    first = (_LOWEST_BITS >> shift) - 1
    position = scores.float().contiguous().view(torch.int32) >> shift
    return position.sub_(first).clamp_(0, bin_count(bits) - 1)


def lower_edges(bits: int) -> Tensor:
    """Smallest score of each bin, float64 (bins,); 0 for the first."""
    shift = _MANTISSA - bits
    first = (_LOWEST_BITS >> shift) - 1
    index = torch.arange(bin_count(bits), dtype=torch.int32)
    edges = ((index + first) << shift).view(torch.float32).double()
    edges[0] = 0.0
    return edges


def require_scores(flat: Tensor) -> None:
    """Refuse scores that are negative or not finite.

    Raises
    ------
    ValueError
        If one is negative, NaN or infinite.
    """
    if flat.numel() == 0:
        return
    low, high = torch.aminmax(flat)
    if not (torch.isfinite(high) and low >= 0):  # a NaN makes both comparisons false
        raise ValueError(
            f"scores must be finite and >= 0; found a range of [{low.item()}, {high.item()}]. "
            "Anomaly scores of this project always are: check the model for overflow."
        )


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
