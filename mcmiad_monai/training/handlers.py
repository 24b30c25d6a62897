"""Ignite handlers of training: seeds per epoch, gradient clipping, atomic checkpoints, resume."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import set_determinism
from tqdm import tqdm

from mcmiad_monai.files import save_torch
from mcmiad_monai.training.distributed import rank

logger = logging.getLogger(__name__)


#: Seeds of the noise of two processes lie at least this far apart.
NOISE_STRIDE = 1_000_003


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not belong to this run."""


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
        if rank() > 0:
            engine.add_event_handler(Events.ITERATION_STARTED, self._own_noise)

    def __call__(self, engine: Engine) -> None:
        """Seed for the epoch that starts."""
        seed = self.seed + engine.state.epoch
        torch.manual_seed(seed)
        set_determinism(seed=seed, use_deterministic_algorithms=None)

    def _own_noise(self, engine: Engine) -> None:
        torch.manual_seed(NOISE_STRIDE * rank() + self.seed + engine.state.iteration)


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


class Checkpoints:
    """Write ``last.pt`` after every epoch and ``best.pt`` when the key metric improves.

    Files are written atomically, hold tensors and plain values only, and load with
    ``weights_only=True``.

    Parameters
    ----------
    directory : path
        Folder of both files.
    network, optimizer, lr_scheduler
        What is saved, beside the trainer's epoch and the best metric so far.
    fingerprint : mapping, optional
        Plain values that must agree on resume (encoder digest, seed, …).
    validator : Engine, optional
        Its key metric decides what is best; without one, ``best.pt`` follows ``last.pt``.
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
    ) -> None:
        self.directory = Path(directory)
        self._parts: dict[str, Any] = {
            "network": network,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
        }
        self.fingerprint = json.dumps(dict(fingerprint or {}), sort_keys=True, default=str)
        self.validator = validator
        self.best_metric, self.best_epoch = -math.inf, 0

    @property
    def last(self) -> Path:
        """Checkpoint of the newest finished epoch."""
        return self.directory / "last.pt"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the best key metric."""
        return self.directory / "best.pt"

    def attach(self, engine: Engine) -> None:
        """Save at the end of each epoch; attach after the validation handler."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the epoch that ended."""
        improved = self._improved(engine.state.epoch)
        content = {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "best_metric": self.best_metric,
            "best_epoch": self.best_epoch,
            "fingerprint": self.fingerprint,
        }
        # best first: if the process dies in between, `last` is one epoch behind and repeats it
        if improved:
            save_torch(content, self.best)
        save_torch(content, self.last)

    def _improved(self, epoch: int) -> bool:
        if self.validator is None:
            self.best_epoch = epoch
            return True
        if self.validator.state.epoch != epoch:  # not validated in this epoch
            return False
        name = self.validator.state.key_metric_name
        metric = float(self.validator.state.metrics[name])
        if math.isnan(metric) or metric < self.best_metric:  # of equals, the longer trained
            return False
        self.best_metric, self.best_epoch = metric, epoch
        return True

    def read(self, path: str | Path) -> dict[str, Any]:
        """Read a checkpoint.

        Raises
        ------
        CheckpointError
            If there is none, it is not one, or it comes from a run with another encoder or seed.
        """
        source = Path(path)
        if not source.is_file():
            raise CheckpointError(f"no checkpoint at {source}; train first, or leave `resume` out.")
        try:
            content: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{source} is not a readable checkpoint: {error}") from error
        missing = {*self._parts, "epoch", "iteration", "fingerprint"} - set(content)
        if missing:
            raise CheckpointError(
                f"{source} lacks {sorted(missing)}: it is not a training checkpoint. Pass the "
                "`last.pt` of a run (a packaged model.pt cannot be trained further)."
            )
        if content["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{source} belongs to another run: it has {content['fingerprint']}, this run has "
                f"{self.fingerprint}. Resume with the same data, encoder and seed."
            )
        return content

    def load_network(self, path: str | Path) -> dict[str, Any]:
        """Put a checkpoint's weights into the network, and give the checkpoint back."""
        content = self.read(path)
        self._parts["network"].load_state_dict(content["network"])
        return content

    def resume(self, trainer: Any, path: str | Path) -> None:
        """Continue a run: weights, optimiser, schedule and epoch, so that it equals a straight one.

        Raises
        ------
        CheckpointError
            If the epochs have another length than in the checkpoint, or nothing is left to train.
        """
        content = self.load_network(path)
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
        self._parts["optimizer"].load_state_dict(content["optimizer"])
        self._parts["lr_scheduler"].load_state_dict(content["lr_scheduler"])
        self.best_metric, self.best_epoch = content["best_metric"], content["best_epoch"]
        trainer.state.epoch = content["epoch"]
        trainer.state.iteration = content["iteration"]
        trainer.state.epoch_length = length
        logger.info("resumed %s after epoch %d", path, content["epoch"])


def use(handler: Any) -> Any:
    """Name a handler that is defined elsewhere in a configuration.

    MONAI's check of a bundle's properties takes every entry of a list of handlers for a mapping, so
    a bare reference cannot stand there.
    """
    return handler


class TrainingProgress:
    """One progress bar over all steps, with the loss and the newest validation metric.

    Parameters
    ----------
    validator : Engine, optional
        Its metrics are shown.
    disable : bool
        Show nothing.
    """

    def __init__(self, validator: Any = None, *, disable: bool = False) -> None:
        self.validator, self.disable = validator, disable

    def attach(self, engine: Engine) -> None:
        """Follow the engine's iterations and epochs."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Any) -> None:
        total = engine.state.max_epochs * (engine.state.epoch_length or 0)
        self._bar = tqdm(total=total, desc="training", unit=" steps", disable=self.disable)
        self._bar.update(engine.state.iteration)

    def _step(self, _engine: Engine) -> None:
        self._bar.update(1)

    def _epoch(self, engine: Any) -> None:
        shown = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}"}
        shown["loss"] = f"{engine.state.output[0]['loss']:.4g}"
        if self.validator is not None:
            shown.update({k: f"{float(v):.4g}" for k, v in self.validator.state.metrics.items()})
        self._bar.set_postfix(shown)

    def _close(self, _engine: Engine) -> None:
        self._bar.close()

    def _fail(self, _engine: Engine, error: BaseException) -> None:
        self._bar.close()
        raise error


class StudyProgress:
    """One progress bar over studies."""

    def __init__(self, *, disable: bool = False) -> None:
        self.disable = disable

    def attach(self, engine: Engine) -> None:
        """Follow the engine's iterations."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _start(self, engine: Engine) -> None:
        self._bar = tqdm(
            total=engine.state.epoch_length, desc="studies", unit=" studies", disable=self.disable
        )

    def _step(self, _engine: Engine) -> None:
        self._bar.update(1)

    def _close(self, _engine: Engine) -> None:
        self._bar.close()
