"""Cosine or step decay of the learning rate, chosen on validation (§4.2)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.training.fit import fit_head
from mcmiad_monai.training.handlers import Checkpoints
from mcmiad_monai.training.method import Method
from mcmiad_monai.training.trainer import HeadValidator

logger = logging.getLogger(__name__)

Schedule = Literal["cosine", "step"]


def better(figures: Mapping[str, float]) -> Schedule:
    """Cosine, unless the step schedule validates better."""
    return "step" if figures and figures["step"] > figures["cosine"] else "cosine"


class OtherSchedule:
    """A second training of a bundle, with the step schedule, where the method says ``"auto"``.

    Parameters
    ----------
    method : Method
    checkpoints : Checkpoints
        Of the first training, with the cosine schedule.
    data, validation : FeatureDataset
        Training and validation slices.
    prior : TextPrior
    seed : int
        The same as of the first training, so that the two differ by the schedule alone.

    Attributes
    ----------
    best : Path
        Checkpoint of the better training: that of the step schedule must be better to be taken.
    chosen : dict
        Schedule and best validation figure of each, for the model card; empty where nothing was
        chosen.
    """

    def __init__(
        self,
        *,
        method: Method,
        checkpoints: Checkpoints,
        data: FeatureDataset,
        validation: FeatureDataset,
        prior: TextPrior,
        seed: int = 0,
        device: str | torch.device = "cpu",
        progress: bool = True,
    ) -> None:
        self.method, self.checkpoints = method, checkpoints
        self._training: dict[str, Any] = {
            "data": data,
            "prior": prior,
            "validation": validation,
            "seed": seed,
            "device": device,
            "progress": progress,
        }
        self.best: Path = checkpoints.best
        self.chosen: dict[str, Any] = {}

    def run(self) -> None:
        """Train, and choose; does nothing where the method names one schedule."""
        if self.method.schedule != "auto" or not self.method.trains_head:
            return
        folder = self.checkpoints.directory / "step"
        if not self.checkpoints.resumed:  # what is there is of an earlier training
            shutil.rmtree(folder, ignore_errors=True)
        fit_head(
            self.method.with_options(schedule="step"),
            checkpoints=folder,
            fingerprint=self.checkpoints.identity,
            **self._training,
        )
        paths = {"cosine": self.checkpoints.best, "step": folder / "best.pt"}
        figures = {kind: self.checkpoints.read(path)["best_metric"] for kind, path in paths.items()}
        kind = better(figures)
        self.best, self.chosen = paths[kind], {"schedule": kind, "validation": figures}
        logger.info("schedule of the learning rate: %s (best validation %s)", kind, figures)


def validation_metric(
    head: MCMIADHead, method: Method, data: FeatureDataset, device: str | torch.device = "cpu"
) -> float:
    """Key metric of `HeadValidator` for a trained head: more is better."""
    validator = HeadValidator(
        device=device,
        dataset=data,
        network=head,
        loss_function=method.build_loss(data.encoder).to(device),
        score=method.build_score(data.encoder).to(device),
    )
    validator.run()
    return float(validator.state.metrics[validator.state.key_metric_name])
