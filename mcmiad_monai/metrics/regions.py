"""Metrics that count lesions instead of pixels: AUPRO and FROC."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import ignite.distributed as idist
import numpy as np
import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from mcmiad_monai.metrics.histogram import BITS, ScoreHistogram, bin_count
from mcmiad_monai.metrics.pixels import same_shape
from mcmiad_monai.metrics.slices import gather, identity

#: False-positive rate up to which BMAD integrates.
FPR_LIMIT = 0.3
#: False positives per volume at which sensitivities are given, as in LUNA16 and later challenges.
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class AUPRO(Metric):
    """Area under the per-region overlap up to a false-positive rate, divided by that rate.

    The overlap at a threshold is the mean, over all lesions, of the share of a lesion at or above
    it: a small lesion counts as much as a large one. Lesions are connected components of the mask
    of an image (diagonal neighbours included). It streams: each region is added to one histogram,
    weighted by the inverse of its area.

    Parameters
    ----------
    fpr_limit : float
        Where integration ends, above 0 and at most 1.

    Raises
    ------
    ValueError
        If the limit is out of range.
    """

    def __init__(
        self,
        output_transform: Callable[..., tuple[Tensor, Tensor]] = identity,
        device: str | torch.device = "cpu",
        *,
        fpr_limit: float = FPR_LIMIT,
        bits: int = BITS,
    ) -> None:
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit is {fpr_limit}; it must lie above 0 and at most at 1.")
        self._limit, self._bits = fpr_limit, bits
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all regions."""
        bins = bin_count(self._bits)
        self._overlap = torch.zeros(bins, dtype=torch.float64, device=self._device)
        self._negative = torch.zeros(bins, dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Take images or volumes: heatmaps (B, 1, …) and masks (B, 1, …), > 0 is lesion.

        Raises
        ------
        ValueError
            If the shapes differ.
        """
        heatmap, mask = same_shape(output)
        overlap, negative = ScoreHistogram(self._bits), ScoreHistogram(self._bits)
        lesion = mask > 0
        negative.update(heatmap[~lesion])
        for heat, marked in zip(heatmap.flatten(0, 1), lesion.flatten(0, 1), strict=True):
            if marked.any():
                labels, _ = components(marked)
                inside = labels[labels > 0]
                areas = torch.bincount(inside)
                overlap.update(heat[marked], 1 / areas[inside])
        self._overlap += overlap.counts.to(self._device)
        self._negative += negative.counts.to(self._device)

    @sync_all_reduce("_overlap", "_negative")
    def compute(self) -> float:
        """Normalised area; NaN without a lesion or without a normal pixel."""
        if self._overlap.sum() == 0 or self._negative.sum() == 0:
            return math.nan
        curve = [
            torch.cat([part.new_zeros(1), part.flip(0).cumsum(0)]) / part.sum()
            for part in (self._negative, self._overlap)
        ]
        return area_up_to(curve[0].cpu().numpy(), curve[1].cpu().numpy(), self._limit)


class FROC(Metric):
    """Lesion-wise sensitivity at false positives per volume.

    A candidate is a connected component of the heatmap above a threshold, with its highest value as
    its score. It hits the lesions that it touches, and is a false positive if it touches none; a
    lesion is found at the score of the best candidate that touches it. At a rate of false positives
    stands the highest sensitivity of any operating point with at most that rate; nothing is
    interpolated (and, unlike in MONAI's function, the lowest operating point counts).

    Parameters
    ----------
    threshold : float
        Candidates lie above it; 1.0 is the threshold of calibrated heatmaps.
    false_positives : sequence of float
        Rates per volume.
    """

    def __init__(
        self,
        output_transform: Callable[..., tuple[Tensor, Tensor]] = identity,
        device: str | torch.device = "cpu",
        *,
        threshold: float = 1.0,
        false_positives: Sequence[float] = FALSE_POSITIVES,
    ) -> None:
        self._threshold, self._rates = threshold, tuple(false_positives)
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all volumes."""
        self._found: list[float] = []  # score of each lesion, −∞ if nothing touches it
        self._false: list[float] = []
        self._volumes = 0

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Take volumes or images: heatmaps (B, 1, …) and masks (B, 1, …), > 0 is lesion."""
        heatmap, mask = same_shape(output)
        for heat, marked in zip(heatmap.flatten(0, 1), (mask > 0).flatten(0, 1), strict=True):
            found, false = candidates(heat.float(), marked, self._threshold)
            self._found += found
            self._false += false
            self._volumes += 1

    def compute(self) -> dict[str, float]:
        """``froc``, the mean sensitivity over the rates, and each; NaN without a lesion."""
        found, false, volumes = self._found, self._false, self._volumes
        if idist.get_world_size() > 1:
            parts = gather((found, false, volumes))
            found = [score for part in parts for score in part[0]]
            false = [score for part in parts for score in part[1]]
            volumes = sum(part[2] for part in parts)
        each = [sensitivity(found, false, volumes, rate) for rate in self._rates]
        figures = {f"sensitivity_at_{r:g}fp": s for r, s in zip(self._rates, each, strict=True)}
        return {"froc": float(np.mean(each)), **figures}


def components(marked: Tensor) -> tuple[Tensor, int]:
    """Label connected components, neighbours over corners included: labels from 1, and count."""
    from scipy import ndimage

    array = marked.cpu().numpy()
    labels, count = ndimage.label(array, np.ones((3,) * array.ndim))
    return torch.from_numpy(labels).long(), int(count)


def candidates(heat: Tensor, marked: Tensor, threshold: float) -> tuple[list[float], list[float]]:
    """Score at which each lesion is found, and scores of the candidates that touch none."""
    regions, count = components(heat > threshold)
    lesions, lesion_count = components(marked)
    inside = regions > 0
    peak = torch.zeros(count + 1).scatter_reduce(0, regions[inside], heat[inside].cpu(), "amax")
    both = inside & (lesions > 0)
    touched, lesion = regions[both], lesions[both]
    found = torch.full((lesion_count + 1,), -math.inf)
    found = found.scatter_reduce(0, lesion, peak[touched], "amax")
    false = torch.ones(count + 1, dtype=torch.bool)
    false[0] = False
    false[touched] = False
    return found[1:].tolist(), peak[false].tolist()


def sensitivity(found: Sequence[float], false: Sequence[float], volumes: int, rate: float) -> float:
    """Share of lesions found with at most ``rate`` false positives per volume."""
    if not found:
        return math.nan
    allowed = math.floor(rate * volumes + 1e-9)
    ordered = sorted(false, reverse=True)
    # one more false positive than allowed comes in at its score: the threshold lies above it
    limit = ordered[allowed] if len(ordered) > allowed else -math.inf
    return sum(score > limit for score in found) / len(found)


def area_up_to(fpr: np.ndarray, overlap: np.ndarray, limit: float) -> float:
    """Area under a curve of rising ``fpr`` from 0 to ``limit``, divided by the limit."""
    from scipy.integrate import trapezoid

    inside = fpr <= limit
    end = np.interp(limit, fpr, overlap)
    x, y = np.append(fpr[inside], limit), np.append(overlap[inside], end)
    return float(trapezoid(y, x) / limit)
