"""Thresholds of a model from the normal slices of held-out studies."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from mcmiad_monai.calibration import (
    FALSE_POSITIVE_RATE,
    PIXEL_FALSE_POSITIVE_RATE,
    Calibration,
    UnifiedCalibration,
    conformal_threshold,
)
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.histogram import ScoreHistogram
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.score import volume_score

logger = logging.getLogger(__name__)


class CalibrationError(RuntimeError):
    """There are no held-out normals to set thresholds from."""


@torch.inference_mode()
def calibrate(
    detector: MCMIADDetector,
    dataset: FeatureDataset,
    *,
    pixel_false_positive_rate: float = PIXEL_FALSE_POSITIVE_RATE,
    false_positive_rate: float = FALSE_POSITIVE_RATE,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
    modality: str | None = None,
) -> Calibration:
    """Set the detector's unit and thresholds from the normal slices of held-out studies.

    Afterwards 1.0 in a heatmap is the score that a share ``pixel_false_positive_rate`` of normal
    foreground pixels exceeds, and slice and volume scores are in the same unit.

    Parameters
    ----------
    detector : MCMIADDetector
        Its ``heat_scale`` is set in place.
    dataset : FeatureDataset
        Validation slices: studies the head was not trained on.
    modality : str, optional
        Use the slices of this one only.

    Raises
    ------
    CalibrationError
        If the dataset has no normal slice.
    """
    normal = normal_rows(dataset, modality)
    detector = detector.to(device).eval()
    detector.heat_scale.fill_(1.0)
    histogram = ScoreHistogram()
    per_study: dict[str, list[float]] = defaultdict(list)
    patients = {dataset.records[i].case: dataset.records[i].patient for i in normal}
    for start in range(0, len(normal), batch_size):
        rows = normal[start : start + batch_size]
        inside = dataset.foreground(rows).to(device)  # (n, 1, S, S)
        features = dataset.batch(rows).to(device)  # (n, C, g, g)
        maps = detector.heatmap_from_features(features, inside.shape[-2:]) * inside
        histogram.update(maps[inside])
        for row, score in zip(rows, detector.score.slice_score(maps, inside).tolist(), strict=True):
            per_study[dataset.records[row].case].append(score)
    unit = histogram.quantile(1 - pixel_false_positive_rate)
    detector.heat_scale.fill_(unit)
    slices = [score / unit for scores in per_study.values() for score in scores]
    volumes = [float(volume_score(torch.tensor(s))) / unit for s in per_study.values()]
    calibration = Calibration(
        pixel_threshold=unit,
        pixel_false_positive_rate=pixel_false_positive_rate,
        slice_threshold=conformal_threshold(
            slices,
            false_positive_rate,
            groups=[patients[case] for case, scores in per_study.items() for _ in scores],
        ),
        volume_threshold=conformal_threshold(
            volumes, false_positive_rate, groups=[patients[case] for case in per_study]
        ),
        false_positive_rate=false_positive_rate,
        normal_pixels=histogram.total,
        normal_slices=len(slices),
        normal_volumes=len(volumes),
        normal_patients=len(set(patients.values())),
    )
    logger.info("calibrated: %s", calibration.summary())
    return calibration


def normal_rows(dataset: FeatureDataset, modality: str | None = None) -> list[int]:
    """Rows of the normal slices, of one modality or of all.

    Raises
    ------
    CalibrationError
        If there are none.
    """
    wanted = [
        i
        for i, r in enumerate(dataset.records)
        if not r.anomalous and modality in (None, r.modality)
    ]
    if not wanted:
        of = f" of {modality}" if modality else ""
        raise CalibrationError(
            f"thresholds need normal slices{of} in the validation studies; found none. Give more "
            "normal studies, or another split seed."
        )
    return wanted


def calibrate_each(
    detector: MCMIADDetector,
    dataset: FeatureDataset,
    modalities: Sequence[str],
    *,
    unified: bool,
    **options: Any,
) -> Calibration | UnifiedCalibration:
    """Calibrate for each modality that was trained, by its own normals; see `calibrate`.

    A unified model says for which modalities it has thresholds, also if that is one.
    """
    each = {name: calibrate(detector, dataset, modality=name, **options) for name in modalities}
    if not unified and len(each) == 1:
        return next(iter(each.values()))
    calibration = UnifiedCalibration(each)
    detector.heat_scale.fill_(calibration.pixel_threshold)
    return calibration
