"""A head trained on cached features with the options of a method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.research.protocols.method import Method
from mcmiad_monai.training.distributed import replicate
from mcmiad_monai.training.handlers import Checkpoints, TrainingProgress
from mcmiad_monai.training.mixture import MixedFeatures, training_loader
from mcmiad_monai.training.trainer import HeadTrainer, learning_rate_schedule


def fit_head(
    method: Method,
    encoder: FrozenEncoder,
    prior: TextPrior,
    data: MixedFeatures,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoints: Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[MCMIADHead, int]:
    """Train for all epochs of a method; the weights are those of the last.

    Parameters
    ----------
    data : MixedFeatures
        Normal slices, features of ``encoder``.
    checkpoints : Path, optional
        Folder of checkpoints; training goes on from one that is there.
    fingerprint : mapping, optional
        What a checkpoint must agree with.

    Returns
    -------
    tuple
        The head in evaluation mode, and the number of optimiser steps.
    """
    head = method.build_head(encoder, prior, seed)
    if method.standardize_features:
        head.set_feature_statistics(*data.statistics())
    network = replicate(head, device)
    loader = training_loader(
        data,
        batch_size=method.batch_size,
        min_steps=method.min_steps_per_epoch,
        device=device,
    )
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=method.learning_rate, weight_decay=1e-4, fused=True
    )
    steps = method.epochs * len(loader)
    schedule = learning_rate_schedule(optimizer, kind=method.schedule, total_steps=steps)
    handlers: list[Any] = [TrainingProgress(disable=not progress)]
    store = None
    if checkpoints is not None:
        store = Checkpoints(
            checkpoints,
            network=head,
            optimizer=optimizer,
            lr_scheduler=schedule,
            fingerprint=fingerprint,
        )
        handlers.insert(0, store)
    trainer = HeadTrainer(
        device=device,
        max_epochs=method.epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=method.build_loss(encoder).to(device),
        lr_scheduler=schedule,
        seed=seed,
        train_handlers=handlers,
    )
    if store is None or not store.last.exists():
        trainer.run()
    elif store.read(store.last)["epoch"] < method.epochs:
        store.resume(trainer, store.last)
        trainer.run()
    else:  # stopped between the last epoch and the figures
        store.load_network(store.last)
    return head.eval(), steps
