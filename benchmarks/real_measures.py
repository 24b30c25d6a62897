"""Figures of heatmaps with 95 % intervals over patients, in bounded memory.

Of pixels, three histograms a patient are kept; of slices, their scores. All figures come from
these, for all patients and for every draw of them, the same draws in all rows: so differences of
rows are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from real_methods import Steps
from real_sets import RealSet, lesion_voxels
from torch import Tensor

from mcmiad_monai.calibration import PIXEL_FALSE_POSITIVE_RATE, pixel_threshold_of
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.bootstrap import DRAWS, aurocs, draw_patients, percentile_interval
from mcmiad_monai.metrics.histogram import bin_count, bin_of, lower_edges
from mcmiad_monai.networks.score import AnomalyScore

#: Resolution of the histograms: bins of 0.2 %, 0.5 MB a patient; average precision is within 0.001.
BITS = 9
#: Without lesion masks, where thresholds alone come from them: bins of 3 %, for many patients.
COARSE = 5
BATCH = 32
IMAGE_SCORES = ("maximum", "hottest", "mean", "eq7")
#: Kinds of pixels, each with a histogram.
LESION, BESIDE, NORMAL = range(3)


@dataclass
class Part:
    """The slices of a dataset that count: rows (n,), whether each is anomalous, patients."""

    data: FeatureDataset
    rows: list[int]
    labels: np.ndarray
    patients: list[str]


@dataclass
class Measured:
    """What is kept of the heatmaps of some slices.

    Attributes
    ----------
    labels, patients
        Of each slice.
    scores : dict of str to ndarray (n,)
        By the name of the image score.
    pixels : dict of str to ndarray (3, bins)
        By patient: pixels on lesions, the others of slices with a lesion, and the foreground of
        normal slices.
    background : dict of str to float
        Pixels of normal slices outside the foreground.
    bits : int
        Resolution of the histograms.
    """

    labels: np.ndarray
    patients: list[str]
    scores: dict[str, np.ndarray]
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    background: dict[str, float] = field(default_factory=dict)
    bits: int = BITS


def part_of(kind: RealSet, data: FeatureDataset, cases: list[dict[str, Any]]) -> Part:
    """Slices of a dataset without those whose lesion is too small to count."""
    voxels = lesion_voxels(cases) if kind.least_lesion > 1 else {}
    labels = np.array([record.anomalous for record in data.records])
    small = [
        record.anomalous
        and voxels.get((record.case, record.index), kind.least_lesion) < kind.least_lesion
        for record in data.records
    ]
    rows = np.flatnonzero(~np.array(small)).tolist()
    return Part(data, rows, labels[rows], [data.records[row].patient for row in rows])


@torch.inference_mode()
def measure(maps: Tensor, steps: Steps, part: Part, kind: RealSet) -> Measured:
    """Place the maps (n, 1, g, g) of a dataset and count what is needed of them."""
    scorers = {name: AnomalyScore(image_score=name) for name in IMAGE_SCORES}
    scores: dict[str, list[Tensor]] = {name: [] for name in IMAGE_SCORES}
    found = Measured(part.labels, part.patients, {}, bits=BITS if kind.pixel_labels else COARSE)
    for start in range(0, len(part.rows), BATCH):
        rows = part.rows[start : start + BATCH]
        inside = part.data.foreground(rows)
        heat = steps.place(maps[rows], inside)
        for name, scorer in scorers.items():
            scores[name].append(scorer.slice_score(heat, inside))
        lesion = part.data.lesion(rows) if kind.pixel_labels else torch.zeros_like(inside)
        for i in range(len(rows)):
            _count(found, start + i, heat[i], inside[i], lesion[i])
    found.scores = {name: torch.cat(parts).numpy() for name, parts in scores.items()}
    return found


def _count(found: Measured, row: int, heat: Tensor, inside: Tensor, lesion: Tensor) -> None:
    """Count the pixels of a slice."""
    bins, count = bin_of(heat, found.bits), bin_count(found.bits)

    def histogram(mask: Tensor) -> np.ndarray:
        return torch.bincount(bins[mask], minlength=count).numpy()

    patient = found.patients[row]
    total = found.pixels.setdefault(patient, np.zeros((3, count)))
    if found.labels[row]:
        total[LESION] += histogram(lesion)
        total[BESIDE] += histogram(~lesion)
    else:
        total[NORMAL] += histogram(inside)
        outside = float((~inside).sum())
        found.background[patient] = found.background.get(patient, 0.0) + outside


def joined(parts: Sequence[Measured]) -> Measured:
    """Several parts, of different patients or different slices of them, as one."""
    whole = Measured(
        np.concatenate([part.labels for part in parts]),
        [patient for part in parts for patient in part.patients],
        {name: np.concatenate([p.scores[name] for p in parts]) for name in parts[0].scores},
        bits=parts[0].bits,
    )
    for part in parts:
        for patient, counts in part.pixels.items():
            whole.pixels[patient] = whole.pixels.get(patient, 0) + counts
        for patient, count in part.background.items():
            whole.background[patient] = whole.background.get(patient, 0.0) + count
    return whole


def pixel_threshold(normals: Measured) -> float:
    """Median over patients of what a share of each one's normal foreground pixels exceeds."""
    edges = lower_edges(normals.bits).numpy()
    each = []
    for counts in normals.pixels.values():
        reached = counts[NORMAL].cumsum()
        if reached[-1]:
            place = np.searchsorted(reached, (1 - PIXEL_FALSE_POSITIVE_RATE) * reached[-1])
            each.append(edges[min(place + 1, len(edges) - 1)])
    return pixel_threshold_of(each) if each else float("nan")


def drawn_figures(
    found: Measured, kind: RealSet, thresholds: dict[str, float], draws: int = DRAWS
) -> dict[str, np.ndarray]:
    """Every figure that makes sense, (1 + draws,): over all patients, then over drawn ones.

    `thresholds` has that of each patient.
    """
    patients, member = np.unique(found.patients, return_inverse=True)
    weights = np.ones((1, len(patients)))
    if draws:
        weights = np.concatenate([weights, draw_patients(len(patients), draws, seed=0)])
    figures: dict[str, np.ndarray] = {}
    if kind.image_labels:
        for name, scores in found.scores.items():
            figures[f"image_{name}"] = slice_aurocs(scores, found.labels, weights[:, member])
    counts = np.stack([found.pixels[p] for p in patients])  # (patients, 3, bins)
    if kind.pixel_labels:
        figures.update(pixel_figures(found, counts, patients.tolist(), weights, kind))
    above = np.stack(
        [
            counts[i][:, first_bin_above(thresholds[p], found.bits) :].sum(1)
            for i, p in enumerate(patients.tolist())
        ]
    )  # (patients, 3)
    called, total = weights @ above, weights @ counts.sum(2)  # (1 + draws, 3)
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind.pixel_labels:
            lesion_slices = total[:, LESION] + called[:, LESION] + called[:, BESIDE]
            normals = called[:, NORMAL] if kind.image_labels else 0.0
            figures["dice"] = 2 * called[:, LESION] / (lesion_slices + normals)
        if total[0, NORMAL]:
            figures["normal_above"] = called[:, NORMAL] / total[:, NORMAL]
    return figures


def pixel_figures(
    found: Measured, counts: np.ndarray, patients: list[str], weights: np.ndarray, kind: RealSet
) -> dict[str, np.ndarray]:
    """AUROC, average precision and best F1 of pixels in every draw.

    Where there are no image labels, pixels are those of slices with a lesion.
    """
    normal = counts[:, BESIDE].copy()
    if kind.image_labels:
        normal += counts[:, NORMAL]
        normal[:, 0] += [found.background.get(p, 0.0) for p in patients]
    lesion = counts[:, LESION]
    used = (lesion + normal).any(0)  # the other bins add nothing
    lesion, normal = lesion[:, used], normal[:, used]
    parts: dict[str, list[np.ndarray]] = {"pixel_auroc": [], "pixel_ap": [], "pixel_f1_max": []}
    for chunk in np.array_split(weights, max(1, len(weights) // 100)):
        positive, negative = chunk @ lesion, chunk @ normal  # (chunk, bins)
        parts["pixel_auroc"].append(aurocs(positive, negative))
        hits = np.cumsum(positive[:, ::-1], 1)[:, ::-1]
        called = hits + np.cumsum(negative[:, ::-1], 1)[:, ::-1]
        total = positive.sum(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = hits / np.maximum(called, 1)
            parts["pixel_ap"].append((positive * precision).sum(1) / total[:, 0])
            parts["pixel_f1_max"].append((2 * hits / (called + total)).max(1))
    return {name: np.concatenate(each) for name, each in parts.items()}


def first_bin_above(threshold: float, bits: int) -> int:
    """Bin from which on a pixel counts as above; no bin of an undefined threshold."""
    if np.isnan(threshold):
        return bin_count(bits)
    return int(bin_of(torch.tensor([threshold]), bits))


def slice_aurocs(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of scores (n,) with each weighting (draws, n) of the slices."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    found = []
    for chunk in np.array_split(weights[:, order], max(1, len(weights) // 100)):
        positive, negative = (
            np.add.reduceat(chunk * kind[order], starts, axis=1) for kind in (labels, ~labels)
        )
        found.append(aurocs(positive, negative))
    return np.concatenate(found)


def ends(values: np.ndarray) -> list[float]:
    """Ends of the 95 % interval of (1 + draws,) values, the first of which is over all patients."""
    found = percentile_interval(float(values[0]), values[1:].tolist(), 0.95, patients=0)
    return [found.low, found.high]
