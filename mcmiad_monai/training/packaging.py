"""The last step of training: best weights, thresholds from held-out normals, one model file."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
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
from mcmiad_monai.files import write_text
from mcmiad_monai.metrics.histogram import ScoreHistogram
from mcmiad_monai.modality import get_modality
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.score import volume_score
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.training.handlers import Checkpoints
from mcmiad_monai.training.method import Method
from mcmiad_monai.training.schedule_choice import OtherSchedule

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
        maps = detector.heatmap_from_features(features, inside) * inside
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


class Packager:
    """Write ``models/model.pt``: encoder, text prior, head and calibration in one file.

    Parameters
    ----------
    detector : MCMIADDetector
        Holds the head that was trained.
    prior : TextPrior
        What the head's fusion was built with.
    checkpoints : Checkpoints
        Its ``best.pt`` is packaged.
    other_schedule : OtherSchedule, optional
        Names the checkpoint to package instead, where two schedules were trained.
    training_data, calibration_data : FeatureDataset
        Training and validation slices.
    path : path
        The package.
    training : mapping
        Plain values about the run, for the model card; ``modality`` is one of them.
    method : Method
        The options of the run.
    metadata : path, optional
        The bundle's ``metadata.json``, which gets thresholds and provenance as well: MONAI's
        exports carry it along.
    """

    def __init__(
        self,
        *,
        detector: MCMIADDetector,
        prior: TextPrior,
        checkpoints: Checkpoints,
        training_data: FeatureDataset,
        calibration_data: FeatureDataset,
        path: str | Path,
        training: Mapping[str, Any],
        method: Method,
        other_schedule: OtherSchedule | None = None,
        metadata: str | Path | None = None,
        pixel_false_positive_rate: float = PIXEL_FALSE_POSITIVE_RATE,
        false_positive_rate: float = FALSE_POSITIVE_RATE,
        device: str | torch.device = "cpu",
    ) -> None:
        self.detector, self.prior, self.checkpoints = detector, prior, checkpoints
        self.calibration_data, self.path = calibration_data, Path(path)
        self.other_schedule = other_schedule
        self.modalities = sorted({r.modality for r in training_data.records})
        options = method.to_dict()
        self.training = {
            **training,
            **{name: options[name] for name in ("max_epochs", "batch_size", "learning_rate")},
            "method": options,
            "modalities": self.modalities,
            "training_studies": training_data.case_count,
            "training_slices": len(training_data),
            "validation_studies": calibration_data.case_count,
            "unreadable_studies": len(training_data.failures) + len(calibration_data.failures),
        }
        self.device = device
        self.metadata = None if metadata is None else Path(metadata)
        self.rates: dict[str, Any] = {
            "pixel_false_positive_rate": pixel_false_positive_rate,
            "false_positive_rate": false_positive_rate,
        }

    def check(self) -> None:
        """Look before the training whether thresholds can be set after it.

        Raises
        ------
        CalibrationError
            If a modality that is trained has no normal slice among the validation studies.
        """
        for modality in self.modalities:
            normal_rows(self.calibration_data, modality)

    def run(self) -> Path:
        """Load the best epoch, calibrate, and write the package and its model card."""
        choice = self.other_schedule
        best = self.checkpoints.load_network(choice.best if choice else self.checkpoints.best)
        chosen = {"schedule": choice.chosen} if choice and choice.chosen else {}
        calibration = calibrate_each(
            self.detector,
            self.calibration_data,
            self.modalities,
            unified=get_modality(str(self.training["modality"])).is_unified,
            device=self.device,
            **self.rates,
        )
        provenance = {
            **self.detector.provenance,
            "text_prior": self.prior.provenance,
            "training": {**self.training, **chosen, "best_epoch": best["best_epoch"]},
            **produced_with(),
        }
        save_package(
            self.path,
            self.detector,
            calibration=calibration.to_dict(),
            provenance=provenance,
        )
        write_text(self.path.with_name("MODEL_CARD.md"), model_card(provenance, calibration))
        if self.metadata is not None and self.metadata.is_file():
            known = json.loads(self.metadata.read_text(encoding="utf-8"))
            known |= {"calibration": calibration.to_dict(), "provenance": provenance}
            write_text(self.metadata, json.dumps(known, indent=4, default=str) + "\n")
        logger.info("packaged %s", self.path)
        return self.path


def model_card(provenance: Mapping[str, Any], calibration: Calibration | UnifiedCalibration) -> str:
    """Markdown that says what the model is made of, warnings first."""
    encoder, prior = provenance["encoder"], provenance["text_prior"]
    warnings = []
    if str(encoder["weights"]).startswith("random"):
        warnings.append(
            "**The encoder has random weights.** Its features were never trained on any image; "
            "the model shows that the software works and detects nothing that can be relied on."
        )
    if "hashing" in prior["encoder"]:
        warnings.append(
            "**The text prior is not CLIP.** It is made of hashed words, which carry no meaning "
            "across words; it stands in where CLIP cannot be had."
        )
    lines = ["# Model card", "", "Research software, not a medical device.", ""]
    lines += [f"> {w}\n" for w in warnings]
    lines += ["## Thresholds", "", f"{calibration.summary()}.", "", "## Provenance", ""]
    lines += ["```json", json.dumps(provenance, indent=1, default=str), "```", ""]
    return "\n".join(lines)
