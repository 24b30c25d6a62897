"""Area under the ROC curve, exact for slices and streaming for pixels.

An AUROC of one class alone is undefined and reported as NaN (never 0.5), and one below 0.5 stays
below 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from mcmiad_monai.metrics.histogram import BINS, ScoreHistogram


def auroc(scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Exact AUROC of scores against 0/1 labels; NaN if only one class is present."""
    from sklearn.metrics import roc_auc_score

    truth = np.asarray(labels).astype(bool)
    if truth.size == 0 or truth.all() or not truth.any():
        return math.nan
    return float(roc_auc_score(truth, np.asarray(scores)))


def histogram_auroc(positive: Tensor, negative: Tensor) -> float:
    """AUROC of two histograms over the same bins; scores that share a bin count as ties."""
    n_positive, n_negative = positive.sum(), negative.sum()
    if n_positive == 0 or n_negative == 0:
        return math.nan
    below = negative.cumsum(0) - negative
    wins = (positive * (below + 0.5 * negative)).sum()
    return float(wins / (n_positive * n_negative))


def identity(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Pass the output of an engine on as it is."""
    return output


class SliceAUROC(Metric):
    """Exact AUROC over slices or volumes: ``update((scores (N,), labels (N,)))``."""

    def __init__(
        self,
        output_transform: Callable[..., tuple[Tensor, Tensor]] = identity,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all scores."""
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Take the scores and 0/1 labels of a batch."""
        scores, labels = output
        self._scores.append(scores.detach().reshape(-1).double().cpu())
        self._labels.append(labels.detach().reshape(-1).bool().cpu())

    def compute(self) -> float:
        """AUROC over everything seen, in every process; NaN if one class is missing."""
        if not self._scores:
            raise NotComputableError("SliceAUROC needs at least one update before compute.")
        import ignite.distributed as idist

        scores, labels = torch.cat(self._scores), torch.cat(self._labels)
        if idist.get_world_size() > 1:
            pairs: Any = idist.utils.all_gather((scores.tolist(), labels.tolist()))
            scores = torch.tensor([s for part in pairs for s in part[0]], dtype=torch.float64)
            labels = torch.tensor([y for part in pairs for y in part[1]])
        return auroc(scores.numpy(), labels.numpy())


class PixelAUROC(Metric):
    """Streaming AUROC over pixels: ``update((heatmap, mask))`` of any equal shapes.

    Two histograms stand for all pixels, so memory does not grow with their number. The error is at
    most half the share of (lesion, normal) pairs that fall into one bin of 0.04 % relative width.
    """

    def __init__(
        self,
        output_transform: Callable[..., tuple[Tensor, Tensor]] = identity,
        device: str | torch.device = "cpu",
        bins: int = BINS,
    ) -> None:
        self._bins = bins
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all pixels."""
        self._positive = torch.zeros(self._bins, dtype=torch.float64, device=self._device)
        self._negative = torch.zeros(self._bins, dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Count the pixels of a heatmap (>= 0) on its mask (> 0 is lesion).

        Raises
        ------
        ValueError
            If the shapes differ.
        """
        heatmap, mask = output
        if heatmap.shape != mask.shape:
            raise ValueError(
                f"heatmap {tuple(heatmap.shape)} and mask {tuple(mask.shape)} differ in shape; "
                "the mask must lie on the grid of the heatmap."
            )
        lesion = mask.reshape(-1) > 0
        flat = heatmap.reshape(-1)
        self._positive += self._count(flat[lesion])
        self._negative += self._count(flat[~lesion])

    def _count(self, pixels: Tensor) -> Tensor:
        histogram = ScoreHistogram(self._bins)
        histogram.update(pixels)
        return histogram.counts.to(self._device)

    @sync_all_reduce("_positive", "_negative")
    def compute(self) -> float:
        """AUROC over all pixels of all processes; NaN if one class is missing."""
        return histogram_auroc(self._positive, self._negative)
