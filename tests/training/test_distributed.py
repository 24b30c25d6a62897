"""Several processes do what one does: order of who goes first, gradients, and validation figures.

Run as a script, this file is one process of a group that describes itself as torchrun does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Events
from kept_features import kept_features
from small_heads import CHANNELS, GRID, QUIET, small_head
from torch import Tensor, nn

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.slices import SliceAUROC
from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.training import distributed
from mcmiad_monai.training.loading import training_loader
from mcmiad_monai.training.trainer import HeadTrainer, HeadValidator

PROCESSES = 2


def kept(count: int, *, anomalous: tuple[int, ...] = ()) -> FeatureDataset:
    """Random features as a cache has them; some slices are anomalous, and not all found."""
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, CHANNELS, GRID, GRID, generator=generator)
    for position, row in enumerate(anomalous):
        values[row] *= 1 + 2 * position
    return kept_features(values, anomalous=anomalous)


# the experts' balance is a ratio over a batch, of which processes have their own
LOSS = ReconstructionLoss(balance_weight=0.0, cosine_weight=5.0)


def train(dataset: FeatureDataset) -> tuple[list[float], list[float]]:
    """Weights after two epochs wired as the bundle has them, and random numbers of each step."""
    head = small_head(**QUIET)
    network = distributed.replicate(head, "cpu")
    loader = training_loader(dataset, batch_size=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    trainer = HeadTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=LOSS,
        seed=7,
    )
    noise: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: noise.append(torch.rand(1)))
    trainer.run()
    weights = torch.cat([p.detach().flatten() for p in head.parameters()])
    return weights.tolist(), [float(value) for value in noise]


def validate(dataset: FeatureDataset, batch_size: int) -> list[dict[str, float]]:
    """Figures of two validations, of which the second must not remember the first."""
    validator = HeadValidator(
        device="cpu",
        dataset=dataset,
        network=small_head(**QUIET),
        loss_function=LOSS,
        score=AnomalyScore(),
        batch_size=batch_size,
    )
    found = []
    for epoch in (1, 2):
        validator.run(epoch)
        name = str(validator.state.key_metric_name)
        figures = {k: float(v) for k, v in validator.state.metrics.items()}
        found.append({**figures, "key": figures[name]})
    return found


def gradients(images: Tensor, **options: Any) -> list[float]:
    """Gradients after a second backward pass: DDP finds out by then what it was not given."""
    head = small_head(**{**QUIET, **options})
    network = distributed.replicate(head, "cpu")
    for _ in range(2):
        head.zero_grad()
        LOSS(network(images)).backward()
    return torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None]).tolist()


OPTIONS: list[dict[str, Any]] = [{}, {"use_text_fusion": False}, {"top_k": 1, "ffn_per_round": 2}]
BATCH = torch.randn(16, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(5))
# in the second, one process has anomalous slices alone in some of its batches
VALIDATION = [kept(9, anomalous=(0, 3, 4)), kept(8, anomalous=(1, 7)), kept(7)]
TRAINING = kept(16)
BATCH_SIZES = (1, 2, 32)


def figures(share: slice) -> dict[str, Any]:
    """What all processes together must do as one."""
    scores = torch.tensor([0.1, 0.8, 0.3, 0.9, 0.2])[share]
    labels = torch.tensor([0, 1, 1, 1, 0])[share]
    auroc = SliceAUROC()
    auroc.update((scores, labels))
    return {
        "auroc": auroc.compute(),
        "gradients": [gradients(BATCH[share], **options) for options in OPTIONS],
        "validation": [validate(d, size) for d in VALIDATION for size in BATCH_SIZES],
        "weights": train(TRAINING)[0],
    }


def what_the_first_made(folder: Path) -> bool:
    """Whether a process finds it when it is its turn."""
    file = folder / "made_by_the_first"
    with idist.one_rank_first():
        found = file.exists()
        if idist.get_rank() == 0:
            time.sleep(0.3)
            file.touch()
    return found


def work(folder: Path) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    distributed.start("gloo")
    rank = idist.get_rank()
    found = {
        "place": [rank, idist.get_world_size(), str(idist.device())],
        "first": what_the_first_made(folder),
        "noise": train(TRAINING)[1],
        **figures(slice(rank, None, idist.get_world_size())),
    }
    idist.barrier()
    idist.finalize()
    found["after"] = [idist.get_rank(), idist.get_world_size()]
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def group(forked: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What two real processes found, and what one finds alone."""
    folder = tmp_path_factory.mktemp("group")
    forked.run_group([__file__, folder], folder, PROCESSES)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
    return SimpleNamespace(each=found, alone=figures(slice(0, None)))


def test_processes_know_their_place_and_leave_it(group: SimpleNamespace) -> None:
    device = str(idist.device())
    assert [own["place"] for own in group.each] == [[0, 2, device], [1, 2, device]]
    assert [own["after"] for own in group.each] == [[0, 1]] * 2


def test_first_process_goes_first_and_the_others_find_what_it_made(group: SimpleNamespace) -> None:
    assert [own["first"] for own in group.each] == [False, True]


@pytest.mark.parametrize("option", range(len(OPTIONS)), ids=map(str, OPTIONS))
def test_replicas_average_their_gradients_to_those_of_one(
    group: SimpleNamespace, option: int
) -> None:
    expected = torch.tensor(group.alone["gradients"][option])
    assert expected.abs().max() > 1e-3
    for own in group.each:
        found = torch.tensor(own["gradients"][option])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_training_in_two_processes_gives_the_weights_of_one(group: SimpleNamespace) -> None:
    first, second = (torch.tensor(own["weights"]) for own in group.each)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.tensor(group.alone["weights"]), rtol=0, atol=1e-5)
    start = torch.cat([p.detach().flatten() for p in small_head(**QUIET).parameters()])
    assert (first - start).abs().max() > 1e-3


def test_each_process_has_noise_of_its_own(group: SimpleNamespace) -> None:
    first, second = (own["noise"] for own in group.each)
    assert len(first) == len(second) == 8
    assert not set(first) & set(second)
    assert len(set(second)) == 8


def test_validation_figures_are_those_of_one_process_however_they_are_shared(
    group: SimpleNamespace,
) -> None:
    alone = group.alone["validation"]
    assert all("val_slice_auroc" in epoch for run in alone[:6] for epoch in run)
    assert any(0 < run[0].get("val_slice_auroc", 0) < 1 for run in alone)
    for own in group.each:
        for found, expected in zip(own["validation"], alone, strict=True):
            for epoch in (0, 1):
                assert found[epoch] == pytest.approx(expected[epoch], rel=1e-5)
    # nor do they depend on the size of the batches, or on the epoch before
    for start in (0, 3, 6):
        for run in alone[start : start + 3]:
            assert run[1] == run[0] == pytest.approx(alone[start][0], rel=1e-5)


def test_auroc_of_slices_is_over_all_processes(group: SimpleNamespace) -> None:
    assert [own["auroc"] for own in group.each] == [group.alone["auroc"]] * 2 == [1.0] * 2


def test_replica_of_one_process_is_the_network_itself() -> None:
    network = nn.Linear(2, 2)
    assert distributed.replicate(network, "cpu") is network
    moved = distributed.replicate(network, torch.device("meta"))
    assert moved is network
    assert network.weight.device.type == "meta"


def test_start_without_torchrun_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match=r"started alone.*torchrun --standalone"):
        distributed.start()
    assert idist.get_world_size() == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
