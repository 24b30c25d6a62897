"""A training that ends when the validation has not improved for a while, and its resumed twin."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from kept_features import kept_features
from monai.handlers import LrScheduleHandler, ValidationHandler
from small_heads import CHANNELS, GRID, small_head

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.training.fit import fit_head
from mcmiad_monai.training.handlers import CheckpointError, Checkpoints, EarlyStop
from mcmiad_monai.training.loading import training_loader
from mcmiad_monai.training.method import Method, preset
from mcmiad_monai.training.schedule import learning_rate_schedule
from mcmiad_monai.training.trainer import HeadTrainer, HeadValidator

NAN = float("nan")
#: Key metric of each epoch: the second is the best, and two epochs later nothing is better.
FIGURES = [0.5, 0.9, NAN, 0.9, 0.95, 0.95]


def features(count: int) -> FeatureDataset:
    """Random features of normal slices."""
    generator = torch.Generator().manual_seed(count)
    return kept_features(torch.randn(count, CHANNELS, GRID, GRID, generator=generator))


def weights_of(head: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in head.parameters()])


def make_run(
    directory: Path,
    *,
    patience: int | None = 2,
    epochs: int = len(FIGURES),
    figures: list[float] | None = FIGURES,
    interval: int = 1,
) -> SimpleNamespace:
    """A trainer with early stop, whose validation pretends the figures."""
    head = small_head()
    batches = training_loader(features(12), batch_size=4)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    schedule = learning_rate_schedule(
        optimizer, kind="cosine", total_steps=len(FIGURES) * len(batches)
    )
    validator = HeadValidator(
        device="cpu",
        dataset=features(9),
        network=head,
        loss_function=ReconstructionLoss(),
        score=AnomalyScore(),
    )
    early_stop = EarlyStop(validator, patience)
    checkpoints = Checkpoints(
        directory,
        network=head,
        optimizer=optimizer,
        lr_scheduler=schedule,
        validator=validator,
        early_stop=early_stop,
    )
    trainer = HeadTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=batches,
        network=head,
        optimizer=optimizer,
        loss_function=ReconstructionLoss(),
        train_handlers=[
            ValidationHandler(interval, validator),
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
        ],
        checkpoints=checkpoints,
    )

    @validator.on(Events.COMPLETED)
    def pretend(engine: Engine) -> None:
        if figures is not None:
            name = engine.state.key_metric_name
            engine.state.metrics[name] = figures[trainer.state.epoch - 1]

    return SimpleNamespace(head=head, trainer=trainer, checkpoints=checkpoints)


def test_training_ends_when_the_validation_has_not_improved(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.trainer.run()
    assert run.trainer.state.epoch == 4
    # the epoch that ended it is saved like every other
    assert run.checkpoints.read(run.checkpoints.last)["epoch"] == 4
    # of equals, the longer trained
    assert run.checkpoints.read(run.checkpoints.best)["epoch"] == 4


@pytest.mark.parametrize("patience", [None, 3])
def test_training_goes_on_without_patience_or_with_more(
    tmp_path: Path, patience: int | None
) -> None:
    run = make_run(tmp_path, patience=patience)
    run.trainer.run()
    assert run.trainer.state.epoch == len(FIGURES)


def test_epochs_without_validation_do_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path, patience=1, interval=2, figures=[0.0, 0.9, 0.0, 0.8, 0.0, 0.0])
    run.trainer.run()
    assert run.trainer.state.epoch == 4


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_run_ends_where_the_straight_one_does(tmp_path: Path, stop: int) -> None:
    straight = make_run(tmp_path / "straight")
    straight.trainer.run()
    make_run(tmp_path / "parts", epochs=stop).trainer.run()
    second = make_run(tmp_path / "parts")
    second.checkpoints.resume(second.trainer, second.checkpoints.last)
    second.trainer.run()
    assert second.trainer.state.epoch == straight.trainer.state.epoch == 4
    torch.testing.assert_close(
        weights_of(second.head), weights_of(straight.head), rtol=0, atol=1e-6
    )


def test_run_that_was_ended_is_resumed_with_more_patience_alone(tmp_path: Path) -> None:
    make_run(tmp_path).trainer.run()
    again = make_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"stopped after epoch 4.*raise patience"):
        again.checkpoints.resume(again.trainer, again.checkpoints.last)
    longer = make_run(tmp_path, patience=3)
    longer.checkpoints.resume(longer.trainer, longer.checkpoints.last)
    longer.trainer.run()
    assert longer.trainer.state.epoch == len(FIGURES)


def test_fitted_head_stays_as_it_is_once_its_training_has_ended(tmp_path: Path) -> None:
    encoder: Any = SimpleNamespace(
        out_channels=CHANNELS, stage_channels=(CHANNELS,), grid=GRID, provenance={}
    )
    data, validation = features(12), features(9)
    data.encoder = encoder
    options = {"dim": 16, "heads": 2, "neighbourhood": 3, "learning_rate": 1e-30, "max_epochs": 12}
    method = preset("default", batch_size=4, patience=1, **options)
    prior = encode_hashing(("a healthy brain",))

    def fit(folder: Path, method: Method) -> tuple[torch.Tensor, int]:
        head, steps = fit_head(
            method, data, prior, validation=validation, checkpoints=folder, progress=False
        )
        return weights_of(head), steps

    weights, steps = fit(tmp_path, method)
    assert steps == 2 * 3  # at this learning rate no weight changes
    again, same = fit(tmp_path, method)
    assert torch.equal(again, weights)
    assert same == steps
    assert fit(tmp_path / "all", method.with_options(patience=None))[1] == 12 * 3


@pytest.mark.parametrize("options", [{"patience": 0}, {"copies": -1}])
def test_counts_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="copies must be at least"):
        preset("default", **options)
