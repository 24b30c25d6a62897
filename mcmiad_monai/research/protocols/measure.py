"""Figures of a detector on the test images of a set, for every scoring option at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.metrics import (
    AUPRO,
    Interval,
    PatientPixels,
    PixelMetrics,
    auroc,
    average_precision,
    bootstrap_auroc,
    f1_max,
)
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.research.protocols.method import SCORES, Method


class ScoreFigures:
    """Streaming figures of one scoring option."""

    def __init__(self, score: AnomalyScore) -> None:
        self.score = score
        self.scores: list[float] = []
        self.pixels, self.aupro, self.patients = PixelMetrics(), AUPRO(), PatientPixels()

    def update(
        self,
        heat: torch.Tensor,
        inside: torch.Tensor,
        lesion: torch.Tensor,
        patients: Sequence[str],
    ) -> None:
        """Take heatmaps, foregrounds and masks, each (n, 1, S, S)."""
        heat = heat * inside
        self.scores += self.score.slice_score(heat, inside).tolist()
        heat = heat.cpu()
        self.pixels.update((heat, lesion))
        self.aupro.update((heat, lesion))
        for patient, one, mask in zip(patients, heat, lesion, strict=True):
            self.patients.update(patient, one, mask)


@torch.inference_mode()
def measure(
    detector: MCMIADDetector,
    dataset: FeatureDataset,
    cases: Sequence[Case],
    method: Method,
    *,
    thresholds: bool,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
) -> dict[str, Any]:
    """Image and pixel figures on test images, outside the foreground of which heat is zero.

    An image's label is that of its folder, and by the mask where there is one; BMAD has anomalous
    images with an empty mask, so that the two differ.

    Parameters
    ----------
    detector : MCMIADDetector
        Its encoder made the features.
    dataset : FeatureDataset
        Of all test images, or of the slices of test volumes.
    cases : sequence of dict
        The same images.
    thresholds : bool
        Whether the detector is calibrated; only then is there a Dice at its threshold.

    Returns
    -------
    dict
        ``scores``, figures by scoring option with null where undefined, and counts.
    """
    known = {case["case"]: case for case in cases}
    records = dataset.records
    told = [known[r.case]["anomalous"] for r in records]
    # a volume of one's own, which no folder calls healthy or ill: its mask tells slice by slice
    by_folder = np.array(
        [r.anomalous if t is None else bool(t) for r, t in zip(records, told, strict=True)]
    )
    masked = any(case["label"] for case in cases)
    by_mask = np.array([r.anomalous for r in records]) if masked else None
    patients = [patient_of(known[r.case]) for r in records]
    figures = {
        name: ScoreFigures(method.build_score(dataset.encoder, name).to(device)) for name in SCORES
    }
    unit = detector.heat_scale.float()
    for start in range(0, len(records), batch_size):
        rows = list(range(start, min(start + batch_size, len(records))))
        output = detector.head(dataset.batch(rows).to(device))
        inside, lesion = dataset.foreground(rows).to(device), dataset.lesion(rows)
        for name, figure in figures.items():
            heat = figure.score(output.target, output.reconstruction, inside.shape[-2:])
            heat = heat / unit if name == method.score else heat
            figure.update(heat, inside, lesion, patients[start : start + batch_size])
    return {
        "images": {"good": int((~by_folder).sum()), "anomalous": int(by_folder.sum())},
        "empty_masks": None if by_mask is None else int((by_folder & ~by_mask).sum()),
        "unreadable": len(dataset.failures),
        "scores": {
            name: {
                **image_figures("image", figure.scores, by_folder),
                **(
                    {}
                    if by_mask is None
                    else image_figures("image_by_mask", figure.scores, by_mask)
                ),
                **(pixel_figures(figure, thresholds and name == method.score) if masked else {}),
                **(intervals(figure, by_folder, patients, masked) if name == method.score else {}),
            }
            for name, figure in figures.items()
        },
    }


def image_figures(prefix: str, scores: Sequence[float], labels: np.ndarray) -> dict[str, Any]:
    """AUROC, AP and best F1 of images; null where undefined."""
    values = np.asarray(scores)
    return {
        f"{prefix}_auroc": plain(auroc(values, labels)),
        f"{prefix}_ap": plain(average_precision(values, labels)),
        f"{prefix}_f1_max": plain(f1_max(values, labels).f1),
    }


def pixel_figures(figure: ScoreFigures, thresholds: bool) -> dict[str, Any]:
    """AUROC, AP, best F1, AUPRO and, for a calibrated score, Dice of pixels."""
    found = figure.pixels.compute()
    if not thresholds:
        del found["pixel_dice_at_threshold"]
    return {name: plain(v) for name, v in {**found, "aupro": figure.aupro.compute()}.items()}


def intervals(
    figure: ScoreFigures, labels: np.ndarray, patients: Sequence[str], masked: bool
) -> dict[str, Any]:
    """95 % intervals of the two AUROCs over resampled patients."""

    def ends(interval: Interval) -> list[float | None]:
        return [plain(interval.low), plain(interval.high)]

    found = {
        "image_auroc_interval": ends(bootstrap_auroc(np.array(figure.scores), labels, patients))
    }
    if masked:
        found["pixel_auroc_interval"] = ends(figure.patients.auroc_interval())
    return found


def plain(value: float) -> float | None:
    """A figure as JSON has it; undefined is null."""
    return None if math.isnan(value) else float(value)
