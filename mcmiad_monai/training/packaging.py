"""The last step of training: best weights, thresholds from held-out normals, one model file."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from mcmiad_monai.calibration import (
    FALSE_POSITIVE_RATE,
    PIXEL_FALSE_POSITIVE_RATE,
)
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.odd import log_odd, odd_training_studies
from mcmiad_monai.files.writing import write_csv, write_text
from mcmiad_monai.modality import get_modality
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.memory import NormalMemory
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.training.calibrating import calibrate_each, normal_rows
from mcmiad_monai.training.handlers import Checkpoints
from mcmiad_monai.training.mask_check import check_masks
from mcmiad_monai.training.memory import build_memories
from mcmiad_monai.training.method import Method
from mcmiad_monai.training.model_card import model_card
from mcmiad_monai.training.schedule_choice import OtherSchedule
from mcmiad_monai.training.score_choice import ScoreChooser

logger = logging.getLogger(__name__)


class Packager:
    """Write ``models/model.pt``: encoder, text prior, head, memory and calibration in one file.

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
    chooser : ScoreChooser
        Chooses the score, where the method leaves that open.
    studies_path : path, optional
        CSV of the training studies by their numbers in the memory; ``odd_studies.csv`` beside it
        names odd ones. Both have names of studies: they are no part of a bundle that is passed on.
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
        chooser: ScoreChooser,
        other_schedule: OtherSchedule | None = None,
        studies_path: str | Path | None = None,
        metadata: str | Path | None = None,
        pixel_false_positive_rate: float = PIXEL_FALSE_POSITIVE_RATE,
        false_positive_rate: float = FALSE_POSITIVE_RATE,
        device: str | torch.device = "cpu",
    ) -> None:
        self.detector, self.prior, self.checkpoints = detector, prior, checkpoints
        self.training_data, self.calibration_data = training_data, calibration_data
        self.path = Path(path)
        self.other_schedule, self.chooser, self.method = other_schedule, chooser, method
        self.studies_path = None if studies_path is None else Path(studies_path)
        self.studies: list[str] = []
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
        """Load the best epoch, build the memory, choose the score, calibrate, and write the files.

        Beside the package is its model card; under ``studies_path``, which training studies the
        numbers in the memory stand for.
        """
        odd: dict[str, dict[str, str]] = {
            "training": odd_training_studies(self.training_data),
            "held-out": {},
        }
        log_odd("training", odd["training"])
        learned = {**self._take_head(), **self._add_memories(odd["training"])}
        self.chooser.run(self.detector)
        if self.chooser.chosen:
            learned["score"] = self.chooser.chosen
        self._keep_what_is_used()
        calibration = calibrate_each(
            self.detector,
            self.calibration_data,
            self.modalities,
            unified=get_modality(str(self.training["modality"])).is_unified,
            patients=self.chooser.threshold_patients,
            device=self.device,
            odd=odd["held-out"],
            **self.rates,
        )
        masks = check_masks(self.detector, self.calibration_data, calibration, device=self.device)
        if masks.finds_nothing:
            logger.warning("the masks are empty: %s", masks.summary())
        provenance = {
            **self.detector.provenance,
            "text_prior": self.prior.provenance if self.method.trains_head else None,
            "training": {
                **self.training,
                **learned,
                # no names: the file may be passed on
                "odd_studies": {part: len(found) for part, found in odd.items()},
            },
            **produced_with(),
        }
        save_package(
            self.path,
            self.detector,
            calibration=calibration.to_dict(),
            provenance=provenance,
        )
        card = model_card(provenance, calibration, odd=odd, masks=masks, choice=self.chooser.choice)
        write_text(self.path.with_name("MODEL_CARD.md"), card)
        if self.studies_path is not None:
            rows = [
                {"part": part, "case": case, "reason": reason}
                for part, found in odd.items()
                for case, reason in found.items()
            ]
            write_csv(self.studies_path.with_name("odd_studies.csv"), rows)
        if self.metadata is not None and self.metadata.is_file():
            known = json.loads(self.metadata.read_text(encoding="utf-8"))
            known |= {"calibration": calibration.to_dict(scores=False), "provenance": provenance}
            write_text(self.metadata, json.dumps(known, indent=4, default=str) + "\n")
        logger.info("packaged %s", self.path)
        return self.path

    def _take_head(self) -> dict[str, Any]:
        """Put the best epoch into the detector, or no head at all; returns what is to be told."""
        if not self.method.trains_head:
            self.detector.head = None
            return {}
        choice = self.other_schedule
        best = self.checkpoints.load_network(choice.best if choice else self.checkpoints.best)
        schedule = {"schedule": choice.chosen} if choice and choice.chosen else {}
        return {**schedule, "best_epoch": best["best_epoch"]}

    def _add_memories(self, without: Collection[str]) -> dict[str, Any]:
        """Build the memories that the score is made of, or may be; returns what is to be told."""
        if not self.method.memories:
            return {}
        built = build_memories(
            self.method,
            self.training_data,
            self.calibration_data,
            normal_rows(self.calibration_data),
            seed=int(self.training["seed"]),
            without=without,
            device=self.device,
        )
        self.detector.set_memories(built.memories)
        self.studies = built.studies
        return {"memory": built.description}

    def _keep_what_is_used(self) -> None:
        """Leave out memories that the score is not made of; the head always stays."""
        used = self.detector.score.sources
        memories = cast(Mapping[str, NormalMemory], dict(self.detector.memories.items()))
        kept = {name: memory for name, memory in memories.items() if f"memory-{name}" in used}
        self.detector.set_memories(kept)
        if kept and self.studies_path is not None:
            rows = [{"number": n, "case": case} for n, case in enumerate(self.studies)]
            write_csv(self.studies_path, rows)
