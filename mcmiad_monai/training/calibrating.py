"""Thresholds of a model from the normal slices of held-out studies."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mcmiad_monai.calibration import (
    FALSE_POSITIVE_RATE,
    PIXEL_FALSE_POSITIVE_RATE,
    Calibration,
    UnifiedCalibration,
    conformal_threshold,
    kept_scores,
    median_interval,
    pixel_threshold_of,
)
from mcmiad_monai.data.feature_store import SliceRecord
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.odd import log_odd, odd_studies
from mcmiad_monai.metrics.histogram import LOWEST, ScoreHistogram
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.score import volume_score

logger = logging.getLogger(__name__)

#: Resolution of the histograms of a study's heat: bins of 0.1 %, 0.3 MB.
BITS = 10


class CalibrationError(RuntimeError):
    """There are no held-out normals to set thresholds from."""


@dataclass
class NormalHeat:
    """Heat of normal studies, in units of the raw score map.

    Attributes
    ----------
    patients, studies : dict of str to float
        Of each patient and each case, the heat that the chosen share of its foreground pixels
        exceeds; without those that have no foreground.
    typical : dict of str to float
        Median heat of each case where it is above 0.
    scores : dict of str to list of float
        Slice scores of each case.
    patient_of : dict of str to str
        Patient of each case.
    pixels : int
        Foreground pixels of all.
    """

    patients: dict[str, float] = field(default_factory=dict)
    studies: dict[str, float] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    patient_of: dict[str, str] = field(default_factory=dict)
    pixels: int = 0
    typical: dict[str, float] = field(default_factory=dict)


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
    patients: Collection[str] | None = None,
    odd: dict[str, str] | None = None,
) -> Calibration:
    """Set the detector's unit and thresholds from the normal slices of held-out studies.

    Afterwards at least half of new normal patients have at most a share
    ``pixel_false_positive_rate`` of their foreground pixels above 1.0 in the heatmap, and slice and
    volume scores are in the same unit.

    Parameters
    ----------
    detector : MCMIADDetector
        Its ``heat_scale`` is set in place.
    dataset : FeatureDataset
        Validation slices: studies the head was not trained on.
    modality : str, optional
        Use the slices of this one only.
    patients : collection of str, optional
        Use the slices of these only.
    odd : dict, optional
        Gets the studies that are unlike the others, case → reason; see `odd_studies`. They are
        logged as well, and stay among those that set the thresholds.

    Raises
    ------
    CalibrationError
        If the dataset has no normal slice, or half of its patients have no heat.
    """
    rows = normal_rows(dataset, modality, patients)
    detector.heat_scale.fill_(1.0)
    heat = normal_heat(
        detector,
        dataset,
        rows,
        rate=pixel_false_positive_rate,
        device=device,
        batch_size=batch_size,
    )
    calibration = thresholds(heat, pixel_false_positive_rate, false_positive_rate)
    detector.heat_scale.fill_(calibration.pixel_threshold)
    logger.info("calibrated: %s", calibration.summary())
    found = odd_studies(dataset, rows, heat.studies)
    log_odd("held-out", found)
    if odd is not None:
        odd |= found
    return calibration


def thresholds(
    heat: NormalHeat,
    pixel_false_positive_rate: float = PIXEL_FALSE_POSITIVE_RATE,
    false_positive_rate: float = FALSE_POSITIVE_RATE,
) -> Calibration:
    """Thresholds that the heat of normal studies sets.

    An odd study stays among them: the pixel threshold is a median, which it hardly moves, and the
    thresholds of slices and volumes keep their promise only if no study is left out for its scores.

    Parameters
    ----------
    heat : NormalHeat
        For the same ``pixel_false_positive_rate``.

    Raises
    ------
    CalibrationError
        If there is no foreground, or half of the patients have no heat.
    """
    quantiles = list(heat.patients.values())
    unit = pixel_threshold_of(quantiles)
    if not LOWEST < unit < math.inf:
        raise CalibrationError(
            f"no pixel threshold above 0 can be set: of {len(quantiles)} normal patients at least "
            f"half have heat in at most {pixel_false_positive_rate:.2%} of their foreground "
            "pixels. Use a smaller pixel_false_positive_rate, subtract less of the mirrored map "
            "(symmetry), or check the weights and the foreground."
        )
    cases = list(heat.scores)
    slices = [score / unit for case in cases for score in heat.scores[case]]
    volumes = [float(volume_score(torch.tensor(heat.scores[case]))) / unit for case in cases]
    patients = [heat.patient_of[case] for case in cases]
    of_slices = [heat.patient_of[case] for case in cases for _ in heat.scores[case]]
    interval, confidence = median_interval(quantiles) or (None, 0.0)
    return Calibration(
        pixel_threshold=unit,
        pixel_false_positive_rate=pixel_false_positive_rate,
        slice_threshold=conformal_threshold(slices, false_positive_rate, groups=of_slices),
        volume_threshold=conformal_threshold(volumes, false_positive_rate, groups=patients),
        false_positive_rate=false_positive_rate,
        normal_pixels=heat.pixels,
        normal_slices=len(slices),
        normal_volumes=len(volumes),
        normal_patients=len(set(patients)),
        pixel_interval=interval,
        pixel_confidence=confidence,
        slice_scores=kept_scores(slices),
        volume_scores=kept_scores(volumes),
        typical_heat=kept_scores([value / unit for value in heat.typical.values()]),
    )


def normal_heat(
    detector: MCMIADDetector,
    dataset: FeatureDataset,
    rows: Sequence[int],
    *,
    rate: float = PIXEL_FALSE_POSITIVE_RATE,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
) -> NormalHeat:
    """Heat of normal slices by study and patient.

    Patients come one after the other, so that memory does not grow with pixels: two histograms of
    0.3 MB, a number for each study and patient, and a number for each slice. That is 0.3 GB for
    10⁵ patients of 20 slices.

    Parameters
    ----------
    rows : sequence of int
        Slices of the dataset.
    rate : float
        Share of the pixels of a study or patient above its heat.
    """
    records = dataset.records
    rows = sorted(rows, key=lambda i: (records[i].patient, records[i].case, i))
    found = NormalHeat()
    patient, study = ScoreHistogram(BITS), ScoreHistogram(BITS)

    def close(histogram: ScoreHistogram, name: str, kept: dict[str, float]) -> None:
        if histogram.total:
            kept[name] = histogram.quantile(1 - rate)
        histogram.counts.zero_()

    def close_study(last: SliceRecord, following: SliceRecord | None) -> None:
        patient.counts += study.counts
        found.pixels += study.total
        if study.total > (cold := int(study.counts[0])):
            middle = (cold + study.total) / 2  # of the pixels with heat
            found.typical[last.case] = study.quantile(middle / study.total)
        close(study, last.case, found.studies)
        if following is None or following.patient != last.patient:
            close(patient, last.patient, found.patients)

    last: SliceRecord | None = None
    for row, heat, inside, score in heated(detector, dataset, rows, device, batch_size):
        record = records[row]
        if last is not None and record.case != last.case:
            close_study(last, record)
        study.update(heat[inside])
        found.scores[record.case].append(score)
        found.patient_of[record.case] = record.patient
        last = record
    if last is not None:
        close_study(last, None)
    return found


def heated(
    detector: MCMIADDetector,
    dataset: FeatureDataset,
    rows: Sequence[int],
    device: str | torch.device,
    batch_size: int,
) -> Iterator[tuple[int, Tensor, Tensor, float]]:
    """Row, heatmap (1, S, S), foreground (1, S, S) and slice score of slices."""
    detector = detector.to(device).eval()
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        inside = dataset.foreground(chosen).to(device)  # (n, 1, S, S)
        features = dataset.batch(chosen).to(device)  # (n, C, g, g)
        bright = dataset.intensity(chosen)
        bright = None if bright is None else bright.to(device)
        maps = detector.heatmap_from_features(features, inside, bright) * inside
        scores = detector.score.slice_score(maps, inside).tolist()
        yield from zip(chosen, maps, inside, scores, strict=True)


def normal_rows(
    dataset: FeatureDataset,
    modality: str | None = None,
    patients: Collection[str] | None = None,
) -> list[int]:
    """Rows of the normal slices, of one modality or of all, of some patients or of all.

    Raises
    ------
    CalibrationError
        If there are none.
    """
    wanted = [
        i
        for i, r in enumerate(dataset.records)
        if not r.anomalous
        and modality in (None, r.modality)
        and (patients is None or r.patient in patients)
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
