"""What follows the training of an experiment: its memory, its score and its thresholds."""

from __future__ import annotations

import logging
from typing import Any

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.odd import odd_training_studies
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.inference.cohort import to_plain
from mcmiad_monai.modality import UNIFIED
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.research.protocols.laboratory import Experiment, Laboratory
from mcmiad_monai.training.calibrating import calibrate
from mcmiad_monai.training.memory import build_memories
from mcmiad_monai.training.method import AUTO_SCORE
from mcmiad_monai.training.score_choice import (
    ScoreChoice,
    ScoreChooser,
    candidates,
    score_name,
)
from mcmiad_monai.training.synthetic import synthetic_dataset

logger = logging.getLogger(__name__)


def finish(
    plan: Experiment, lab: Laboratory, detector: MCMIADDetector, data: FeatureDataset
) -> dict[str, Any]:
    """Give a detector its memories, its score and its thresholds, as a bundle's training does.

    The validation parts decide and set the thresholds. Where a set has no normal image there, no
    threshold is set, and ``score: auto`` is the simplest candidate.

    Parameters
    ----------
    detector : MCMIADDetector
        Changed in place. It keeps all memories, for the tables.
    data : FeatureDataset
        Normal images that it was trained on.

    Returns
    -------
    dict
        ``calibration``, empty without thresholds; ``memory`` and ``score``, what was built and
        chosen, where the method has them.

    Raises
    ------
    ValueError
        If the units of a sum are needed and there is no normal validation image.
    """
    normals = _held_out(plan, lab, normal=True)
    learned: dict[str, Any] = {}
    if plan.method.memories:
        built = build_memories(
            plan.method,
            data,
            normals or data,
            range(len(normals or ())),
            seed=plan.seed,
            without=odd_training_studies(data),
            device=lab.device,
        )
        detector.set_memories(built.memories)
        learned["memory"] = built.description
    if normals is None:
        return {"calibration": {}, **learned, **_simplest(plan, lab, detector)}
    patients = None
    if plan.method.chooses_score:
        chooser = SetsChooser(plan, lab, _held_out(plan, lab) or normals)
        chooser.run(detector)
        patients = chooser.threshold_patients
        if chooser.choice is not None:
            learned["score"] = _plain(chooser.choice)
    calibration = calibrate(detector, normals, device=lab.device, patients=patients)
    return {"calibration": calibration.to_dict(), **learned}


class SetsChooser(ScoreChooser):
    """The choice of an experiment's score, where synthetic anomalies are those of each set."""

    def __init__(self, plan: Experiment, lab: Laboratory, validation: FeatureDataset) -> None:
        super().__init__(
            method=plan.method,
            cases=[case for name in plan.sets for case in _cases(lab, name, normal=True)],
            validation=validation,
            modality=_modality(plan, lab),
            context=plan.method.context,
            seed=plan.seed,
            device=lab.device,
        )
        self.plan, self.lab = plan, lab

    def synthetic(self, detector: MCMIADDetector) -> FeatureDataset:
        """Validation images of each set, with and without synthetic anomalies."""
        parts = {}
        for name in self.plan.sets:
            found = self.lab.sets[name]
            cases = [
                case
                for case in _cases(self.lab, name, normal=True)
                if self.deciding is None or patient_of(case) in self.deciding
            ]
            if cases:
                parts[name] = synthetic_dataset(
                    cases,
                    detector.encoder,
                    modality=found.modality,
                    transform=found.transform(**self.method.image_options),
                    context=self.method.context,
                    seed=self.seed,
                    size=self.lab.size,
                    device=self.device,
                )
        return FeatureDataset.join(parts)


def _held_out(plan: Experiment, lab: Laboratory, *, normal: bool = False) -> FeatureDataset | None:
    """Validation images of all sets, or the normal ones; None if a set has none of these."""
    parts = {}
    for name in plan.sets:
        cases = _cases(lab, name, normal=normal)
        if not cases:
            return None
        parts[name] = lab.features(name, "val", plan.method, cases)
    return FeatureDataset.join(parts)


def _cases(lab: Laboratory, name: str, *, normal: bool) -> list[Case]:
    return [c for c in lab.sets[name].cases("val") if not (normal and c["anomalous"])]


def _modality(plan: Experiment, lab: Laboratory) -> str:
    found = {lab.sets[name].modality for name in plan.sets}
    return found.pop() if len(found) == 1 else UNIFIED.name


def _simplest(plan: Experiment, lab: Laboratory, detector: MCMIADDetector) -> dict[str, Any]:
    """Give a detector the simplest candidate where nothing can decide; returns what to say."""
    method = plan.method
    if not method.chooses_score:
        return {}
    if method.score != AUTO_SCORE:
        raise ValueError(
            f"the score {method.score} is a sum, whose units are those of normal validation "
            f"images, and not every set of {', '.join(plan.sets)} has such. Name a score of one "
            "map, e.g. --set score=memory-cosine, or give the sets a val part."
        )
    options = candidates(method, _modality(plan, lab), by_labels=False)[0]
    detector.score = method.build_score(detector.encoder, **options).to(lab.device)
    told = f"{score_name(options)}, not chosen: not every set has normal validation images"
    logger.warning("score: %s", told)
    return {"score": {"options": options, "summary": told}}


def _plain(choice: ScoreChoice) -> dict[str, Any]:
    """A choice fit for JSON, undefined figures as null, with its summary."""
    content = choice.to_dict()
    for row in content["table"]:
        row |= {key: to_plain(value) for key, value in row.items()}
        row["image_auroc"] = {key: to_plain(v) for key, v in row["image_auroc"].items()}
    return {"summary": choice.summary(), **content}
