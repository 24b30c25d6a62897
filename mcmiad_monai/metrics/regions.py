"""Metrics that count lesions instead of pixels: AUPRO and FROC."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from mcmiad_monai.metrics.histogram import BITS, ScoreHistogram, bin_count, require_scores
from mcmiad_monai.metrics.pixels import lesion_and_normal, same_shape
from mcmiad_monai.metrics.slices import gather, identity

#: False-positive rate up to which BMAD integrates.
FPR_LIMIT = 0.3
#: False positives per volume at which sensitivities are given, as in LUNA16 and later challenges.
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class AUPRO(Metric):
    """Area under the per-region overlap up to a false-positive rate, divided by that rate.

    The overlap at a threshold is the mean, over all lesions, of the share of a lesion at or above
    it: a small lesion counts as much as a large one. Lesions are connected components of the mask
    of an image or volume, diagonal neighbours included. Memory does not grow: each region is added
    to one histogram, weighted by the inverse of its area. Scores are rounded down to their bin;
    between thresholds, and to the limit, the curve is straight.

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
        """Take heatmaps and masks (> 0 is lesion), (B, 1, H, W) or (B, 1, D, H, W).

        Raises
        ------
        ValueError
            If the shapes differ or are others, or a score is negative or not finite.
        """
        heatmap, lesion = images(output)
        overlap = ScoreHistogram(self._bits)
        shares = [region_shares(marked) for marked in lesion.cpu() if marked.any()]
        if shares:
            overlap.update(heatmap[lesion], torch.cat(shares))
        _, negative = lesion_and_normal(heatmap, lesion, self._bits)
        self._overlap += overlap.counts.to(self._device)
        self._negative += negative.to(self._device)

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

    A candidate is a connected component of the heatmap above a threshold, scored by its highest
    value. It hits the lesions that it touches, and is a false positive if it touches none; a lesion
    is found at the score of the best candidate that touches it. The sensitivity at a rate is the
    highest of any operating point with at most that rate. Volumes without a lesion count in the
    average. Unlike ``monai.metrics.compute_froc_curve_data``, the operating point where every
    candidate is called counts; unlike ``compute_froc_score``, nothing is interpolated.

    Parameters
    ----------
    threshold : float
        Candidates lie above it; 1.0 is the threshold of calibrated heatmaps.
    false_positives : sequence of float
        Rates per volume.

    Raises
    ------
    ValueError
        If there is no rate, or a negative one.
    """

    def __init__(
        self,
        output_transform: Callable[..., tuple[Tensor, Tensor]] = identity,
        device: str | torch.device = "cpu",
        *,
        threshold: float = 1.0,
        false_positives: Sequence[float] = FALSE_POSITIVES,
    ) -> None:
        if not false_positives or min(false_positives) < 0:
            raise ValueError(
                f"false_positives is {tuple(false_positives)}; at least one rate per volume, none "
                "below 0, is needed."
            )
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
        """Take heatmaps and masks (> 0 is lesion), (B, 1, H, W) or (B, 1, D, H, W).

        Raises
        ------
        ValueError
            If the shapes differ or are others, or a score is negative or not finite.
        """
        heatmap, lesion = images(output)
        require_scores(heatmap)
        for heat, marked in zip(heatmap.cpu(), lesion.cpu(), strict=True):
            found, false = candidates(heat.float(), marked, self._threshold)
            self._found += found
            self._false += false
            self._volumes += 1

    def compute(self) -> dict[str, float]:
        """``froc``, the mean sensitivity over the rates, and each; NaN without a lesion."""
        parts = gather((self._found, self._false, self._volumes))
        found, false = ([score for part in parts for score in part[i]] for i in (0, 1))
        volumes = sum(part[2] for part in parts)
        each = [sensitivity(found, false, volumes, rate) for rate in self._rates]
        figures = {f"sensitivity_at_{r:g}fp": s for r, s in zip(self._rates, each, strict=True)}
        return {"froc": float(np.mean(each)), **figures}


def images(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Heatmaps and where they have a lesion, (B, …) each.

    Raises
    ------
    ValueError
        If they are not a batch of images or volumes of one channel; an empty batch is.
    """
    heatmap, mask = same_shape(output)
    if heatmap.shape[0] and (heatmap.ndim not in (4, 5) or heatmap.shape[1] != 1):
        raise ValueError(
            f"found a heatmap of shape {tuple(heatmap.shape)}; (B, 1, H, W) or (B, 1, D, H, W) is "
            "needed, since lesions are labelled image by image."
        )
    return heatmap.flatten(0, 1), mask.flatten(0, 1) > 0


def region_shares(marked: Tensor) -> Tensor:
    """Inverse area of the lesion of each of the ``marked.sum()`` pixels, in their order."""
    labels, _ = components(marked)
    inside = labels[marked]
    return 1 / torch.bincount(inside)[inside].double()


def components(marked: Tensor) -> tuple[Tensor, int]:
    """Label connected components, neighbours over corners included: labels from 1, and count."""
    from scipy import ndimage

    array = marked.numpy()
    labels, count = ndimage.label(array, np.ones((3,) * array.ndim))
    return torch.from_numpy(labels).long(), int(count)


def candidates(heat: Tensor, marked: Tensor, threshold: float) -> tuple[list[float], list[float]]:
    """Score at which each lesion is found, and scores of the candidates that touch none."""
    regions, count = components(heat > threshold)
    lesions, lesion_count = components(marked)
    inside = regions > 0
    peak = torch.zeros(count + 1).scatter_reduce(0, regions[inside], heat[inside], "amax")
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
