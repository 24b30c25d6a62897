"""The last step of training: best weights, thresholds from held-out normals, one model file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mcmiad_monai.calibration import (
    FALSE_POSITIVE_RATE,
    PIXEL_FALSE_POSITIVE_RATE,
    Calibration,
    UnifiedCalibration,
)
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.odd import log_odd, odd_training_studies
from mcmiad_monai.files import write_csv, write_text
from mcmiad_monai.modality import get_modality
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.training.calibrating import calibrate_each, normal_rows
from mcmiad_monai.training.handlers import Checkpoints
from mcmiad_monai.training.memory import build_memory, measure_memory
from mcmiad_monai.training.method import Method
from mcmiad_monai.training.schedule_choice import OtherSchedule
from mcmiad_monai.training.score_choice import ScoreChoice, ScoreChooser, choice_table

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
        CSV of the training studies by their numbers in the memory. It has names of studies: it is
        no part of a bundle that is passed on.
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
        self.calibration_data, self.path = calibration_data, Path(path)
        self.other_schedule, self.chooser, self.method = other_schedule, chooser, method
        self.training_data = training_data
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

        Beside the package are its model card, and which of the training studies the numbers in the
        memory stand for, under ``studies_path``.
        """
        learned = self._take_head()
        learned |= self._add_memories()
        self.chooser.run(self.detector)
        learned |= {"score": self.chooser.chosen} if self.chooser.chosen else {}
        self._leave_out_what_is_not_used()
        calibration = calibrate_each(
            self.detector,
            self.calibration_data,
            self.modalities,
            unified=get_modality(str(self.training["modality"])).is_unified,
            patients=self.chooser.threshold_patients,
            device=self.device,
            **self.rates,
        )
        provenance = {
            **self.detector.provenance,
            "text_prior": self.prior.provenance if self.method.trains_head else None,
            "training": {**self.training, **learned},
            **produced_with(),
        }
        save_package(
            self.path,
            self.detector,
            calibration=calibration.to_dict(),
            provenance=provenance,
        )
        card = model_card(provenance, calibration, self.chooser.choice)
        write_text(self.path.with_name("MODEL_CARD.md"), card)
        if self.metadata is not None and self.metadata.is_file():
            known = json.loads(self.metadata.read_text(encoding="utf-8"))
            known |= {"calibration": calibration.to_dict(), "provenance": provenance}
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

    def _add_memories(self) -> dict[str, Any]:
        """Build the memories that the score may need; returns what is to be told of them."""
        names = self.method.memories
        if not names:
            return {}
        odd = odd_training_studies(self.training_data)
        log_odd("training", odd)
        held_out = normal_rows(self.calibration_data)
        told: dict[str, Any] = {"distances": {}, "odd_studies_left_out": len(odd)}
        for name in names:
            built = build_memory(
                self.training_data,
                name,
                size=self.method.coreset,
                seed=int(self.training["seed"]),
                without=odd,
            )
            self.detector.set_memories({**dict(self.detector.memories), name: built.memory})
            told["distances"][name] = measure_memory(
                built.memory, self.calibration_data, held_out, device=self.device
            )
            told |= {"tokens": len(built.memory.tokens), "studies": len(built.studies)}
            self.studies = built.studies
        return {"memory": told}

    def _leave_out_what_is_not_used(self) -> None:
        """Keep the memories of the chosen score alone; the head always stays."""
        used = self.detector.score.sources
        kept = {n: m for n, m in self.detector.memories.items() if f"memory-{n}" in used}
        self.detector.set_memories(kept)
        if kept and self.studies_path is not None:
            rows = [{"number": n, "case": case} for n, case in enumerate(self.studies)]
            write_csv(self.studies_path, rows)


def model_card(
    provenance: Mapping[str, Any],
    calibration: Calibration | UnifiedCalibration,
    choice: ScoreChoice | None = None,
) -> str:
    """Markdown that says what the model is made of, warnings first."""
    encoder, prior = provenance["encoder"], provenance["text_prior"]
    warnings = []
    if str(encoder["weights"]).startswith("random"):
        warnings.append(
            "**The encoder has random weights.** Its features were never trained on any image; "
            "the model shows that the software works and detects nothing that can be relied on."
        )
    if prior and "hashing" in prior["encoder"]:
        warnings.append(
            "**The text prior is not CLIP.** It is made of hashed words, which carry no meaning "
            "across words; it stands in where CLIP cannot be had."
        )
    lines = ["# Model card", "", "Research software, not a medical device.", ""]
    lines += [f"> {w}\n" for w in warnings]
    lines += ["## Thresholds", "", f"{calibration.summary()}.", ""]
    if choice is not None:
        lines += ["## Score", "", *choice_table(choice)]
    if memory := provenance["training"].get("memory"):
        lines += ["## What the file holds of training images", "", memory_note(memory), ""]
    lines += ["## Provenance", ""]
    lines += ["```json", json.dumps(provenance, indent=1, default=str), "```", ""]
    return "\n".join(lines)


def memory_note(memory: Mapping[str, Any]) -> str:
    """What a model file holds of its training images."""
    return (
        f"Features of {memory['tokens']} places in slices of {memory['studies']} healthy training "
        "studies, with the number of the study, the slice and the place of each. Names are not in "
        "the file. Whoever gets the file can compare images with these features: ask what the "
        "owners of the training images allow before it is passed on."
    )
