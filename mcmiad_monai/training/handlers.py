"""Handlers of training: seeds, gradient clipping, early stop, checkpoints and resume, progress."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, EarlyStopping, ProgressBar
from monai.engines.utils import IterationEvents
from monai.utils import set_determinism

from mcmiad_monai.files.writing import save_torch
from mcmiad_monai.training.identity import CheckpointError, RunIdentity

logger = logging.getLogger(__name__)

#: Seeds of the noise of two processes lie at least this far apart.
NOISE_STRIDE = 1_000_003


class SeedEachEpoch:
    """Seed every generator with ``seed + epoch`` when an epoch starts.

    The random numbers of an epoch then do not depend on those before it, and a resumed run equals
    the straight one. All processes draw the same order of slices from that seed; once it is drawn,
    each gets noise of its own.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Seed at the start of each epoch of the engine."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        if idist.get_rank() > 0:
            engine.add_event_handler(Events.ITERATION_STARTED, self._own_noise)

    def __call__(self, engine: Engine) -> None:
        """Seed for the epoch that starts."""
        seed = self.seed + engine.state.epoch
        torch.manual_seed(seed)
        set_determinism(seed=seed, use_deterministic_algorithms=None)

    def _own_noise(self, engine: Engine) -> None:
        torch.manual_seed(NOISE_STRIDE * idist.get_rank() + self.seed + engine.state.iteration)


class GradientClip:
    """Clip the norm of all gradients together before the optimiser's step (§4.2: 0.1)."""

    def __init__(self, max_norm: float = 0.1) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Clip between backward pass and optimiser step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Clip now; a non-finite norm stops the run while the last checkpoint is good."""
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)
        if scaler is None and not torch.isfinite(norm):
            raise FloatingPointError(
                f"gradient norm is {norm.item()} at iteration {engine.state.iteration}; the last "
                "checkpoint is kept. Lower the learning rate, or train in float32."
            )


class EarlyStop:
    """End the training when the key metric of a validator has not improved for a while.

    ignite's `EarlyStopping`, which counts epochs that were validated.

    Parameters
    ----------
    validator : Engine
        Its key metric decides, more being better.
    patience : int, optional
        Validations in a row without improvement; None never ends the training.
    """

    def __init__(self, validator: Any, patience: int | None) -> None:
        self.validator, self.patience = validator, patience
        self._ignite: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        """Look at the end of each epoch; attach after the validation and before the checkpoints."""
        if self.patience is None:
            return
        self._ignite = EarlyStopping(self.patience, lambda _: key_metric(self.validator), engine)
        validated = Events.EPOCH_COMPLETED(
            event_filter=lambda _, epoch: self.validator.state.epoch == epoch
        )
        engine.add_event_handler(validated, self._ignite)

    def is_over(self, state: Mapping[str, Any]) -> bool:
        """Whether a training with this state dict has been ended."""
        return self.patience is not None and state.get("counter", 0) >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Best figure, and validations since then."""
        return {} if self._ignite is None else dict(self._ignite.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting; from a run without patience there is nothing to go on from."""
        if self._ignite is not None and state:
            self._ignite.load_state_dict(state)


def key_metric(validator: Any) -> float:
    """Newest key metric of a validator; a NaN is worse than everything."""
    metric = float(validator.state.metrics[validator.state.key_metric_name])
    return -math.inf if math.isnan(metric) else metric


class Checkpoints:
    """Write ``last.pt`` after every epoch and ``best.pt`` when the key metric improves.

    Files hold tensors and plain values only, and load with ``weights_only=True``. ignite writes
    them, whole or not at all, from the first process.

    Parameters
    ----------
    directory : path
        Folder of both files.
    network, optimizer, lr_scheduler
        What is saved, beside the trainer's epoch and the best metric so far.
    fingerprint : mapping, optional
        Plain values that must agree on resume; a bundle's are those of
        :func:`~mcmiad_monai.training.identity.run_identity`.
    validator : Engine, optional
        Its key metric decides what is best; without one there is no ``best.pt``.
    early_stop : EarlyStop, optional
        Its state is saved, and a run that it has stopped is not resumed.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        fingerprint: Mapping[str, Any] | None = None,
        validator: Any = None,
        early_stop: EarlyStop | None = None,
    ) -> None:
        self.directory = Path(directory)
        self._parts: dict[str, Any] = {
            "network": network,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
        }
        self.identity = (
            fingerprint if isinstance(fingerprint, RunIdentity) else RunIdentity(fingerprint)
        )
        self.validator, self.early_stop = validator, early_stop
        self.best_metric, self.best_epoch = -math.inf, 0
        self.resumed = False
        self._trainer: Any = None

    @property
    def last(self) -> Path:
        """Checkpoint of the newest finished epoch."""
        return self.directory / "last.pt"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the best key metric."""
        return self.directory / "best.pt"

    def attach(self, engine: Engine) -> None:
        """Save at the end of each epoch, early stopping first; attach after the validation."""
        self._trainer = engine
        if self.early_stop is not None:
            self.early_stop.attach(engine)

        # not a DiskSaver: of one, Checkpoint deletes the old file before it writes the new one
        @idist.one_rank_only()
        def save(content: Mapping[str, Any], name: str, _metadata: Any = None) -> None:
            save_torch(content, self.directory / name)

        def saver(name: str) -> Checkpoint:
            return Checkpoint({"run": self}, save, filename_pattern=name)

        # best first: if the process dies in between, `last` is one epoch behind and repeats it
        improved = Events.EPOCH_COMPLETED(event_filter=self._improved)
        engine.add_event_handler(improved, saver(self.best.name))
        engine.add_event_handler(Events.EPOCH_COMPLETED, saver(self.last.name))

    def state_dict(self) -> dict[str, Any]:
        """Content of a checkpoint."""
        state = self._trainer.state
        return {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "epoch": state.epoch,
            "iteration": state.iteration,
            "epoch_length": state.epoch_length,
            "best_metric": self.best_metric,
            "best_epoch": self.best_epoch,
            "early_stop": {} if self.early_stop is None else self.early_stop.state_dict(),
            "fingerprint": self.identity.text,
        }

    def _improved(self, _engine: Engine, epoch: int) -> bool:
        """Whether the epoch is the best so far; ignite's comparison would keep a NaN for ever."""
        if self.validator is None or self.validator.state.epoch != epoch:  # not validated
            return False
        metric = key_metric(self.validator)
        if metric == -math.inf or metric < self.best_metric:  # of equals, the longer trained
            return False
        self.best_metric, self.best_epoch = metric, epoch
        return True

    def read(self, path: str | Path) -> dict[str, Any]:
        """Read a checkpoint.

        Raises
        ------
        CheckpointError
            If there is none, it is not one, or it comes from another run.
        """
        return self.identity.read(path)

    def load_network(self, path: str | Path) -> dict[str, Any]:
        """Put a checkpoint's weights into the network, and give the checkpoint back."""
        content = self.read(path)
        self._parts["network"].load_state_dict(content["network"])
        return content

    def finished(self, content: Mapping[str, Any], max_epochs: int) -> bool:
        """Whether the training of a checkpoint had its last epoch, or was ended early."""
        ended = self.early_stop and self.early_stop.is_over(content.get("early_stop", {}))
        return content["epoch"] >= max_epochs or bool(ended)

    def run(self, trainer: Any, path: str | Path | None = None) -> None:
        """Train all epochs, or those that a checkpoint leaves, which may be none.

        Raises
        ------
        CheckpointError
            As `resume`.
        """
        self.resumed = path is not None
        if path is None:
            trainer.run()
        elif self.finished(kept := self.read(path), trainer.state.max_epochs):
            self._parts["network"].load_state_dict(kept["network"])
            trainer.state.epoch, trainer.state.iteration = kept["epoch"], kept["iteration"]
            logger.info("%s had its last epoch, %d; nothing is left to train", path, kept["epoch"])
        else:
            self.resume(trainer, path)
            trainer.run()

    def resume(self, trainer: Any, path: str | Path) -> None:
        """Continue a run: weights, optimiser, schedule and epoch, so that it equals a straight one.

        Raises
        ------
        CheckpointError
            If the epochs have another length than in the checkpoint, or nothing is left to train.
        """
        content, self.resumed = self.load_network(path), True
        length = len(trainer.data_loader)
        if content["epoch_length"] != length:
            raise CheckpointError(
                f"{path} was trained with {content['epoch_length']} steps an epoch, this run has "
                f"{length}. Resume with the same data, batch size and number of processes."
            )
        if content["epoch"] >= trainer.state.max_epochs:
            raise CheckpointError(
                f"{path} has finished epoch {content['epoch']} of {trainer.state.max_epochs}; "
                "raise max_epochs to train on."
            )
        if self.early_stop is not None:
            if self.finished(content, trainer.state.max_epochs):
                raise CheckpointError(
                    f"{path} stopped after epoch {content['epoch']}: the key metric had not "
                    f"improved in {self.early_stop.patience} validations; raise patience to train "
                    "on."
                )
            self.early_stop.load_state_dict(content.get("early_stop", {}))
        self._parts["optimizer"].load_state_dict(content["optimizer"])
        self._parts["lr_scheduler"].load_state_dict(content["lr_scheduler"])
        self.best_metric, self.best_epoch = content["best_metric"], content["best_epoch"]
        trainer.state.epoch = content["epoch"]
        trainer.state.iteration = content["iteration"]
        trainer.state.epoch_length = length
        logger.info("resumed %s after epoch %d", path, content["epoch"])


class TrainingBar(ProgressBar):
    """ignite's bar over the steps of an epoch, with the loss and the newest validation figures.

    Parameters
    ----------
    validator : Engine, optional
        Its metrics are shown.
    options
        Of tqdm, e.g. ``disable``.
    """

    def __init__(self, validator: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.validator = validator

    def attach(self, engine: Engine) -> None:  # type: ignore[override]
        """Follow the engine's iterations and epochs."""
        super().attach(engine, output_transform=self._figures)

    def _figures(self, output: Any) -> dict[str, float]:
        known = {} if self.validator is None else self.validator.state.metrics
        return {"loss": output[0]["loss"], **known}
