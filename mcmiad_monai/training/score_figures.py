"""What each of several ways to make heatmaps is worth on labelled images, in one pass over them."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcmiad_monai.calibration import PIXEL_FALSE_POSITIVE_RATE
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.curves import auroc
from mcmiad_monai.metrics.histogram import (
    ScoreHistogram,
    bin_count,
    histogram_auroc,
    histogram_average_precision,
)
from mcmiad_monai.metrics.pixels import lesion_and_normal
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.score import AnomalyScore

#: Resolution of the histograms of pixels: bins of 0.2 %.
BITS = 9


@dataclass(frozen=True, kw_only=True)
class MapFigures:
    """One way to make a heatmap, and what it is worth.

    Attributes
    ----------
    sources, symmetry, smooth_sigma
        See :class:`~mcmiad_monai.networks.score.AnomalyScore`.
    pixel_ap, pixel_auroc : float
        Over the foreground of all images; NaN where no image has a lesion mask.
    image_auroc : dict of str to float
        By the image score.
    """

    sources: dict[str, float]
    symmetry: float
    smooth_sigma: float
    pixel_ap: float
    pixel_auroc: float
    image_auroc: dict[str, float]

    @property
    def criterion(self) -> float:
        """By which maps are compared: the mean of pixel AP and the best image AUROC.

        Heat has to lie on the anomalies, and has to be more than that of normal images. Only one
        of the two counts where the other is not defined.
        """
        figures = (self.pixel_ap, max(self.image_auroc.values()))
        return mean_of_defined(figures)

    @property
    def effort(self) -> tuple[Any, ...]:
        """Less is simpler: fewer sources, no further steps; and a memory comes first.

        Brightness alone sees no dark lesion, and the head takes longest.
        """
        last = max(("memory", "intensity", "head").index(n.split("-")[0]) for n in self.sources)
        return len(self.sources), last, self.symmetry > 0, self.smooth_sigma > 0


class SourceBatch(NamedTuple):
    """Source maps of some images.

    Attributes
    ----------
    rows : list of int
        Of the dataset.
    maps : dict of str to Tensor (n, 1, g, g)
        By the name of the source.
    foreground : Tensor of shape (n, 1, S, S), bool
    """

    rows: list[int]
    maps: dict[str, Tensor]
    foreground: Tensor


@dataclass(frozen=True)
class SourceMaps:
    """Reads the source maps of images of a dataset, batch by batch."""

    detector: MCMIADDetector
    data: FeatureDataset
    names: Sequence[str]
    device: str | torch.device = "cpu"
    batch_size: int = 16

    def __call__(self, rows: Sequence[int]) -> Iterator[SourceBatch]:
        """Maps of rows of the dataset, in their order."""
        for start in range(0, len(rows), self.batch_size):
            some = list(rows[start : start + self.batch_size])
            features = self.data.batch(some).to(self.device)  # (n, C, g, g)
            bright = self.data.intensity(some)
            bright = None if bright is None else bright.to(self.device)
            maps = self.detector.source_maps(features, self.names, bright)
            yield SourceBatch(some, maps, self.data.foreground(some).to(self.device))


def source_units(
    read: SourceMaps, rows: Sequence[int], rate: float = PIXEL_FALSE_POSITIVE_RATE
) -> dict[str, float]:
    """Unit of each source, in which they can be added: what a share of normal pixels exceeds.

    It is the median over patients of each one's own quantile, which an odd patient hardly moves.

    Parameters
    ----------
    rows : sequence of int
        Of which the normal ones are used.
    rate : float
        Share of the pixels.

    Raises
    ------
    ValueError
        If no normal row has foreground.
    """
    records, plain = read.data.records, AnomalyScore()
    normal = sorted((i for i in rows if not records[i].anomalous), key=lambda i: records[i].patient)
    quantiles: dict[str, list[float]] = {name: [] for name in read.names}
    for _, own in itertools.groupby(normal, key=lambda i: records[i].patient):
        histograms = {name: ScoreHistogram(BITS) for name in read.names}
        for batch in read(list(own)):
            for name, histogram in histograms.items():
                histogram.update(plain.place(batch.maps[name], batch.foreground)[batch.foreground])
        for name, histogram in histograms.items():
            if histogram.total:
                quantiles[name].append(histogram.quantile(1 - rate))
    if not all(quantiles.values()):
        raise ValueError(
            f"found no foreground in {len(normal)} normal images; maps can be added only in units "
            "of normal pixels. Give more normal studies, or name a score of one source."
        )
    return {name: float(np.median(values)) for name, values in quantiles.items()}


def figures_of(
    read: SourceMaps,
    rows: Sequence[int],
    ways: Sequence[Mapping[str, Any]],
    image_scores: Sequence[str],
) -> list[MapFigures]:
    """Figures of every way to make a heatmap; of several modalities their mean.

    Parameters
    ----------
    ways : sequence of mapping
        ``sources``, ``symmetry`` and ``smooth_sigma`` of each.
    image_scores : sequence of str
        See :class:`~mcmiad_monai.networks.score.AnomalyScore`.
    """
    parts: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        parts[read.data.records[row].modality].append(row)
    each = [_of_one_modality(read, some, ways, image_scores) for some in parts.values()]
    return [
        MapFigures(
            sources=dict(way["sources"]),
            symmetry=way["symmetry"],
            smooth_sigma=way["smooth_sigma"],
            pixel_ap=mean_of_defined(found.pixel_ap for found in of_way),
            pixel_auroc=mean_of_defined(found.pixel_auroc for found in of_way),
            image_auroc={
                name: mean_of_defined(found.image_auroc[name] for found in of_way)
                for name in image_scores
            },
        )
        for way, of_way in zip(ways, zip(*each, strict=True), strict=True)
    ]


class _Figures(NamedTuple):
    """Figures of one way on one modality; see `MapFigures`."""

    pixel_ap: float
    pixel_auroc: float
    image_auroc: dict[str, float]


def _of_one_modality(
    read: SourceMaps,
    rows: Sequence[int],
    ways: Sequence[Mapping[str, Any]],
    image_scores: Sequence[str],
) -> list[_Figures]:
    own = read.detector.score.config
    placing = [AnomalyScore(**{**own, **way}) for way in ways]
    scoring = {name: AnomalyScore(**{**own, "image_score": name}) for name in image_scores}
    # no metric of ignite: those wait for all processes, and one process alone chooses
    pixels = torch.zeros(len(ways), 2, bin_count(BITS), dtype=torch.float64)  # lesion, normal
    scores: list[dict[str, list[float]]] = [{name: [] for name in image_scores} for _ in ways]
    for some, maps, inside in read(rows):
        lesion = read.data.lesion(some).to(inside.device)
        anomalous = torch.tensor([read.data.records[i].anomalous for i in some])
        # where it is not known where the lesion is, pixels are neither
        known = ~anomalous.to(inside.device) | lesion.flatten(1).any(1)
        counted = inside & known[:, None, None, None]
        for number, score in enumerate(placing):
            heat = score.place(score.total(maps), inside) * inside  # (n, 1, S, S)
            both = lesion_and_normal(heat[counted], lesion[counted], BITS)
            pixels[number] += torch.stack(both).cpu()
            for name, scorer in scoring.items():
                scores[number][name] += scorer.slice_score(heat, inside).tolist()
    labels = [read.data.records[i].anomalous for i in rows]
    found = []
    for (positive, negative), by_name in zip(pixels, scores, strict=True):
        of_images = {name: auroc(values, labels) for name, values in by_name.items()}
        average_precision = histogram_average_precision(positive, negative)
        found.append(_Figures(average_precision, histogram_auroc(positive, negative), of_images))
    return found


def mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
