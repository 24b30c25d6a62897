"""A head trained on cached features with the options of a method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.handlers import LrScheduleHandler, ValidationHandler

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.training.distributed import replicate
from mcmiad_monai.training.handlers import Checkpoints, EarlyStop, TrainingBar
from mcmiad_monai.training.loading import training_loader
from mcmiad_monai.training.method import Method
from mcmiad_monai.training.trainer import HeadTrainer, HeadValidator


def fit_head(
    method: Method,
    data: FeatureDataset,
    prior: TextPrior,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    validation: FeatureDataset | None = None,
    checkpoints: Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[MCMIADHead, int]:
    """Train with a method, with the parts of a bundle's train.yaml.

    Parameters
    ----------
    data : FeatureDataset
        Normal slices; their augmented copies are trained on as well.
    validation : FeatureDataset, optional
        Validated after every epoch; the best one is kept among the checkpoints, and the method's
        patience may end the training. Without it all epochs are trained.
    checkpoints : Path, optional
        Folder of checkpoints; training goes on from one that is there.
    fingerprint : mapping, optional
        What a checkpoint must agree with.

    Returns
    -------
    tuple
        The head of the last epoch in evaluation mode, and the number of optimiser steps.
    """
    head = method.build_head(data.encoder, prior, seed)
    if head.options.standardize_features:
        head.set_feature_statistics(*data.statistics())
    network = replicate(head, device)
    loader = training_loader(
        data, batch_size=method.batch_size, min_steps=method.min_steps_per_epoch, device=device
    )
    optimizer = method.build_optimizer(head.parameters())
    schedule = method.build_schedule(optimizer, len(loader))
    loss = method.build_loss(data.encoder).to(device)
    validator, early_stop = None, None
    handlers: list[Any] = []
    if validation is not None:
        validator = HeadValidator(
            device=device,
            dataset=validation,
            network=head,
            loss_function=loss,
            score=method.build_score(data.encoder).to(device),
        )
        early_stop = EarlyStop(validator, method.patience)
        handlers.append(ValidationHandler(1, validator))
    store = None
    if checkpoints is None and early_stop is not None:
        handlers.append(early_stop)
    elif checkpoints is not None:
        store = Checkpoints(
            checkpoints,
            network=head,
            optimizer=optimizer,
            lr_scheduler=schedule,
            fingerprint=fingerprint,
            validator=validator,
            early_stop=early_stop,
        )
    trainer = HeadTrainer(
        device=device,
        max_epochs=method.max_epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        clip_norm=method.clip_norm,
        seed=seed,
        train_handlers=[
            *handlers,
            LrScheduleHandler(
                schedule,  # type: ignore[arg-type]  # MONAI's hint knows the old base class
                print_lr=False,
                epoch_level=False,
            ),
            TrainingBar(desc="training", disable=not progress),
        ],
        checkpoints=store,
    )
    if store is None:
        trainer.run()
    else:
        store.run(trainer, store.last if store.last.exists() else None)
    return head.eval(), trainer.state.iteration
