"""A histogram of non-negative scores that streams, merges and knows its own error.

Scores are binned on a logarithmic scale, so that the relative resolution is the same for raw
squared feature distances and for calibrated heatmaps: no range has to be known beforehand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: 65,536 bins are 512 kB a histogram and put the width of a bin at 0.04 % of its value.
BINS = 65_536
#: Scores below are "zero" (bin 0); scores above fall into the last bin.
LOWEST, HIGHEST = 1e-6, 1e6


class ScoreHistogram:
    """Counts of scores in logarithmic bins.

    Parameters
    ----------
    bins : int
        Number of bins; the first holds everything below ``1e-6``, zero included.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self._log_low = math.log(LOWEST)
        self._per_unit = (bins - 1) / (math.log(HIGHEST) - self._log_low)

    @property
    def relative_width(self) -> float:
        """Width of a bin relative to the score in it: the error bound of a quantile."""
        return math.exp(1 / self._per_unit) - 1

    def update(self, scores: Tensor) -> None:
        """Count scores of any shape; they must be finite and not negative.

        Raises
        ------
        ValueError
            If a score is negative, NaN or infinite.
        """
        flat = scores.detach().reshape(-1).float()
        if flat.numel() == 0:
            return
        low, high = torch.aminmax(flat)
        if not (torch.isfinite(high) and low >= 0):  # a NaN makes both comparisons false
            raise ValueError(
                f"scores must be finite and >= 0; found a range of [{low.item()}, {high.item()}]. "
                "Anomaly scores of this project always are: check the model for overflow."
            )
        position = (flat.clamp(LOWEST, HIGHEST).log() - self._log_low) * self._per_unit
        index = position.ceil().long()  # bin 0: at or below LOWEST
        self.counts += torch.bincount(index, minlength=self.bins)[: self.bins].double().cpu()

    def merge(self, other: ScoreHistogram) -> None:
        """Add the counts of another histogram, e.g. of another process."""
        self.counts += other.counts

    @property
    def total(self) -> int:
        """Number of scores counted."""
        return int(self.counts.sum().item())

    def quantile(self, q: float) -> float:
        """Score below or at which a share ``q`` of all scores lies, to ``relative_width``.

        Returns
        -------
        float
            Upper edge of the bin that holds the quantile; NaN if nothing was counted.
        """
        if self.total == 0:
            return math.nan
        cumulative = self.counts.cumsum(0)
        index = int(torch.searchsorted(cumulative, q * cumulative[-1]).clamp(max=self.bins - 1))
        return math.exp(self._log_low + index / self._per_unit)
