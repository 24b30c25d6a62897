"""Pixel metrics that stream: two histograms stand for all pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from mcmiad_monai.metrics.curves import (
    histogram_auroc,
    histogram_average_precision,
    histogram_f1_max,
)
from mcmiad_monai.metrics.histogram import BITS, ScoreHistogram, bin_count, lower_edges
from mcmiad_monai.metrics.slices import identity


class PixelMetric(Metric):
    """Counts of lesion and normal pixels: ``update((heatmap, mask))`` of any equal shapes.

    Memory does not grow with the number of pixels. Scores are told apart to a relative width of
    2^-bits, so the AUROC's error is at most half the share of (lesion, normal) pairs that fall into
    one bin; average precision and F1 are exact for scores rounded down to their bin.
    """

    def __init__(
        self,
        output_transform: Callable[..., tuple[Tensor, Tensor]] = identity,
        device: str | torch.device = "cpu",
        bits: int = BITS,
    ) -> None:
        self._bits = bits
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all pixels."""
        bins = bin_count(self._bits)
        self._positive = torch.zeros(bins, dtype=torch.float64, device=self._device)
        self._negative = torch.zeros(bins, dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Count the pixels of a heatmap (>= 0) on its mask (> 0 is lesion).

        Raises
        ------
        ValueError
            If the shapes differ, or a score is negative or not finite.
        """
        heatmap, mask = same_shape(output)
        flat, lesion = heatmap.reshape(-1), mask.reshape(-1) > 0
        # lesions are few: counting all pixels and those saves gathering the many others
        positive, everything = self._count(flat[lesion]), self._count(flat)
        self._positive += positive
        self._negative += everything - positive

    def _count(self, pixels: Tensor) -> Tensor:
        histogram = ScoreHistogram(self._bits)
        histogram.update(pixels)
        return histogram.counts.to(self._device)


class PixelAUROC(PixelMetric):
    """Streaming AUROC over pixels."""

    @sync_all_reduce("_positive", "_negative")
    def compute(self) -> float:
        """AUROC over all pixels of all processes; NaN if one class is missing."""
        return histogram_auroc(self._positive, self._negative)


class PixelMetrics(PixelMetric):
    """Streaming AUROC, average precision, best F1, and Dice at a threshold.

    Parameters
    ----------
    threshold : float
        A pixel above it is called lesion; 1.0 is the threshold of calibrated heatmaps.
    prefix : str
        Goes before the names of the figures.
    """

    def __init__(
        self,
        output_transform: Callable[..., tuple[Tensor, Tensor]] = identity,
        device: str | torch.device = "cpu",
        *,
        threshold: float = 1.0,
        prefix: str = "pixel_",
        bits: int = BITS,
    ) -> None:
        self._threshold, self._prefix = threshold, prefix
        super().__init__(output_transform, device, bits)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all pixels."""
        super().reset()
        # called lesion, and rightly so: exact, since a threshold need not be the edge of a bin
        self._called = torch.zeros(2, dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Count the pixels of a heatmap (>= 0) on its mask (> 0 is lesion)."""
        heatmap, mask = same_shape(output)
        super().update((heatmap, mask))
        above = heatmap > self._threshold
        counts = [above.sum(), (above & (mask > 0)).sum()]
        self._called += torch.stack(counts).double().to(self._device)

    @sync_all_reduce("_positive", "_negative", "_called")
    def compute(self) -> dict[str, float]:
        """Figures over all pixels of all processes; NaN where one class is missing."""
        positive, negative = self._positive, self._negative
        best = histogram_f1_max(positive, negative, lower_edges(self._bits))
        called, hits = self._called.tolist()
        lesion = float(positive.sum())
        figures = {
            "auroc": histogram_auroc(positive, negative),
            "ap": histogram_average_precision(positive, negative),
            "f1_max": best.f1,
            "f1_max_threshold": best.threshold,
            "dice_at_threshold": 2 * hits / (called + lesion) if lesion else float("nan"),
        }
        return {f"{self._prefix}{name}": value for name, value in figures.items()}


def same_shape(output: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """A heatmap and its mask, which lie on one grid.

    Raises
    ------
    ValueError
        If they do not.
    """
    heatmap, mask = (torch.as_tensor(part) for part in output)
    if heatmap.shape != mask.shape:
        raise ValueError(
            f"heatmap {tuple(heatmap.shape)} and mask {tuple(mask.shape)} differ in shape; "
            "the mask must lie on the grid of the heatmap."
        )
    return heatmap.detach(), mask
