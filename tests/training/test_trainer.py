from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from kept_features import kept_features
from monai.handlers import LrScheduleHandler, ValidationHandler
from small_heads import CHANNELS, GRID, small_head
from torch import Tensor
from torch.utils.data import DataLoader

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.inference.evaluator import StudyEvaluator
from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.training.handlers import CheckpointError, Checkpoints
from mcmiad_monai.training.loading import training_loader
from mcmiad_monai.training.schedule import learning_rate_schedule
from mcmiad_monai.training.trainer import HeadTrainer, HeadValidator

EPOCHS = 4


def features(count: int = 12, *, anomalies: bool = False) -> FeatureDataset:
    """Random features; every third slice is anomalous if asked for, and then far away."""
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, CHANNELS, GRID, GRID, generator=generator)
    anomalous = range(0, count, 3) if anomalies else ()
    values[list(anomalous)] *= 20
    return kept_features(values, anomalous=anomalous)


def make_run(
    directory: Path,
    *,
    epochs: int = EPOCHS,
    anomalies: bool = True,
    seed: int = 0,
    **options: Any,
) -> SimpleNamespace:
    """A trainer with all its parts, as the bundle's configuration wires them."""
    head = small_head()
    batches = training_loader(features(), batch_size=4)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    schedule = learning_rate_schedule(optimizer, kind="cosine", total_steps=EPOCHS * len(batches))
    validator = HeadValidator(
        device="cpu",
        dataset=features(9, anomalies=anomalies),
        network=head,
        loss_function=ReconstructionLoss(),
        score=AnomalyScore(),
    )
    checkpoints = Checkpoints(
        directory,
        network=head,
        optimizer=optimizer,
        lr_scheduler=schedule,
        validator=validator,
        fingerprint={"seed": seed},
    )
    trainer = HeadTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=batches,
        network=head,
        optimizer=optimizer,
        loss_function=options.pop("loss_function", ReconstructionLoss()),
        seed=seed,
        train_handlers=[
            ValidationHandler(1, validator),
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
        ],
        checkpoints=checkpoints,
        **options,
    )
    return SimpleNamespace(
        head=head, trainer=trainer, checkpoints=checkpoints, validator=validator, schedule=schedule
    )


def weights_of(head: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in head.parameters()])


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_run_equals_the_straight_run(tmp_path: Path, stop: int) -> None:
    straight = make_run(tmp_path / "straight")
    straight.trainer.run()

    first = make_run(tmp_path / "parts", epochs=stop)
    first.trainer.run()
    torch.randn(17)  # whatever else happened to the generator in between
    second = make_run(tmp_path / "parts")
    second.checkpoints.resume(second.trainer, second.checkpoints.last)
    second.trainer.run()

    assert second.trainer.state.epoch == EPOCHS
    assert not torch.equal(weights_of(first.head), weights_of(second.head))
    torch.testing.assert_close(
        weights_of(second.head), weights_of(straight.head), rtol=0, atol=1e-6
    )
    assert second.checkpoints.best_metric == pytest.approx(straight.checkpoints.best_metric)


def test_seed_decides_the_result(tmp_path: Path) -> None:
    def train(seed: int) -> Tensor:
        run = make_run(tmp_path / str(seed), epochs=1, seed=seed)
        run.trainer.run()
        return weights_of(run.head)

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_training_lowers_the_loss_of_normal_slices(tmp_path: Path) -> None:
    run = make_run(tmp_path, anomalies=False)
    run.validator.run(0)
    before = run.validator.state.metrics["val_neg_loss"]
    run.trainer.run()
    assert run.validator.state.metrics["val_neg_loss"] > before


def test_training_in_bfloat16_is_near_the_exact_one_and_keeps_weights_exact(tmp_path: Path) -> None:
    exact, half = make_run(tmp_path / "a"), make_run(tmp_path / "b", precision="bfloat16")
    dtypes: set[torch.dtype] = set()
    half.head.project.register_forward_hook(lambda *call: dtypes.add(call[2].dtype))
    half.trainer.run()
    exact.trainer.run()
    assert torch.bfloat16 in dtypes
    assert {p.dtype for p in half.head.parameters()} == {torch.float32}
    found, expected = (r.validator.state.metrics["val_neg_loss"] for r in (half, exact))
    assert found == pytest.approx(expected, rel=0.1)
    assert not torch.equal(weights_of(half.head), weights_of(exact.head))


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'float16' is not known"):
        make_run(tmp_path, precision="float16")
    optimizer: Any = None
    with pytest.raises(ValueError, match='use "cosine" or "step"'):
        learning_rate_schedule(optimizer, kind="linear", total_steps=10)  # type: ignore[arg-type]


def test_key_metric_is_auroc_with_anomalies_and_else_the_loss_of_normals(tmp_path: Path) -> None:
    run = make_run(tmp_path, anomalies=True)
    run.validator.run(0)
    found = run.validator.state
    assert found.key_metric_name == "val_slice_auroc"
    # anomalous features are far from anything a small head says
    assert found.metrics["val_slice_auroc"] == 1.0
    dataset = features(9, anomalies=True)
    normal = dataset.batch([i for i, r in enumerate(dataset.records) if not r.anomalous])
    with torch.no_grad():
        output = run.head.eval()(normal)
    squared = (output.target - output.reconstruction).square().mean()
    # the balance term, at weight 0.01, is of the whole batch
    assert -found.metrics["val_neg_loss"] == pytest.approx(float(squared), abs=0.05)
    only_normals = make_run(tmp_path, anomalies=False).validator
    only_normals.run(0)
    assert only_normals.state.key_metric_name == "val_neg_loss"


def test_best_checkpoint_is_the_best_epoch_and_later_of_equals(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    figures = iter([0.5, 0.9, 0.9, float("nan")])

    @run.validator.on(Events.COMPLETED)
    def pretend(engine: Engine) -> None:
        engine.state.metrics[engine.state.key_metric_name] = next(figures)

    run.trainer.run()
    assert run.checkpoints.read(run.checkpoints.best)["epoch"] == 3
    assert run.checkpoints.read(run.checkpoints.last)["epoch"] == EPOCHS


def test_files_are_replaced_and_never_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, epochs=3)
    saved, original = [], torch.save

    def watch(content: Any, *rest: Any, **options: Any) -> None:
        saved.append(run.checkpoints.last.exists())
        original(content, *rest, **options)

    monkeypatch.setattr(torch, "save", watch)
    run.trainer.run()
    assert saved[-1]  # while the newest is written, the one before is there
    assert {p.name for p in tmp_path.iterdir()} == {"best.pt", "last.pt"}


def test_resume_names_what_is_wrong(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=1)
    run.trainer.run()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"model": {}}, tmp_path / "package.pt")
    again = make_run(tmp_path, epochs=1)
    for new, file, told in (
        (make_run(tmp_path, seed=1), "last.pt", "belongs to another run"),
        (again, "none.pt", "no checkpoint at"),
        (again, "text.pt", "not a readable checkpoint"),
        (again, "package.pt", "cannot be trained further"),
        (again, "last.pt", "raise max_epochs"),
    ):
        with pytest.raises(CheckpointError, match=told):
            new.checkpoints.resume(new.trainer, tmp_path / file)


def test_diverged_training_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    make_run(tmp_path, epochs=1).trainer.run()
    broken = make_run(tmp_path, loss_function=lambda output, _: output.reconstruction.sum() / 0)
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        broken.trainer.run()
    assert broken.checkpoints.read(broken.checkpoints.last)["epoch"] == 1


def test_gradients_are_clipped_together(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=1)
    norms: list[float] = []

    @run.trainer.on(Events.ITERATION_COMPLETED)
    def measure(_engine: Engine) -> None:
        parts = [p.grad.norm() for p in run.head.parameters() if p.grad is not None]
        norms.append(float(torch.stack(parts).norm()))

    run.trainer.run()
    assert max(norms) <= 0.1 + 1e-5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cosine", [1.0, (1 + math.cos(0.1 * math.pi)) / 2, 0.5, 0.0]),
        ("step", [1.0, 1.0, 1.0, 0.1]),
    ],
)
def test_schedule_by_hand(kind: Any, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = learning_rate_schedule(optimizer, kind=kind, total_steps=10)
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [rates[i] for i in (0, 1, 5, 10)] == pytest.approx(expected)


def test_one_bad_study_does_not_stop_the_others() -> None:
    studies = [{"case": "a", "image": torch.ones(1)}, {"case": "b", "error": "is empty"}]
    studies += [{"case": "c", "image": torch.zeros(1)}, {"case": "d", "image": torch.ones(1)}]

    def infer(inputs: Tensor, network: Any) -> Tensor:
        if not inputs.any():
            raise ValueError("nothing to see")
        return network(inputs)

    done: list[Any] = []
    evaluator = StudyEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(studies, batch_size=1),  # type: ignore[arg-type]
        network=torch.nn.Identity(),
        inferer=infer,
    )
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: done.extend(engine.state.output)
    )
    evaluator.run()
    assert evaluator.failures == {"b": "is empty", "c": "ValueError: nothing to see"}
    assert [float(item["pred"]) for item in done] == [1.0, 1.0]  # a and d


TRAIN_FOREVER = """
import sys
sys.path[:0] = {tests!r}
from pathlib import Path
from test_trainer import make_run
run = make_run(Path({folder!r}), epochs=100000)
run.trainer.run()
"""


def test_killed_process_leaves_a_loadable_checkpoint(tmp_path: Path, forked: Any) -> None:
    script = tmp_path / "train_forever.py"
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
    script.write_text(TRAIN_FOREVER.format(tests=tests, folder=str(tmp_path)))
    last = tmp_path / "last.pt"
    for delay in (0.0, 0.037, 0.113):
        process, *_ = forked.start([script], tmp_path)
        deadline = time.monotonic() + 60
        before = last.stat().st_mtime_ns if last.exists() else 0
        while not last.exists() or last.stat().st_mtime_ns == before:
            assert process.is_alive(), "the training ended by itself"
            assert time.monotonic() < deadline, "no checkpoint within a minute"
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.join()
        content = torch.load(last, weights_only=True)
        run = make_run(tmp_path, epochs=content["epoch"] + 1)
        run.checkpoints.resume(run.trainer, last)
        run.trainer.run()
        assert run.trainer.state.epoch == content["epoch"] + 1
