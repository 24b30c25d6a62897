"""A step in threads is the step of the whole batch: output, gradients, seeds and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_heads import CHANNELS, GRID, QUIET, small_head
from torch import Tensor

from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.training.distributed import replicate
from mcmiad_monai.training.threaded import ThreadedHead

LOSS = ReconstructionLoss(cosine_weight=5.0, balance_weight=1.0)


def threaded(head: MCMIADHead, workers: int = 2) -> ThreadedHead:
    return ThreadedHead(head, workers, images_a_thread=1)


def images(count: int = 8) -> Tensor:
    return torch.randn(count, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(5))


def gradients(network: torch.nn.Module, head: MCMIADHead, batch: Tensor) -> list[Tensor | None]:
    head.zero_grad(set_to_none=True)
    LOSS(network(batch)).backward()
    return [p.grad for p in head.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion_mode": "prompts"},
        {"ffn_per_round": 2, "top_k": 1},
        {"experts": 1, "top_k": 1},
        {"standardize_features": True, "savings": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(("count", "workers"), [(8, 2), (7, 3), (3, 5)])
def test_output_and_gradients_are_those_of_the_whole_batch(
    options: dict[str, Any], count: int, workers: int
) -> None:
    head = small_head(**QUIET, **options)
    if "standardize_features" in options:
        head.set_feature_statistics(torch.full((CHANNELS,), 0.3), torch.full((CHANNELS,), 2.0))
    batch, network = images(count), threaded(head, workers)
    for found, expected in zip(network(batch), head(batch), strict=True):
        torch.testing.assert_close(found, expected)
    expected_gradients = gradients(head, head, batch)
    for found, expected in zip(gradients(network, head, batch), expected_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_learned_get_no_gradient() -> None:
    head = small_head(**QUIET)
    head.project.requires_grad_(False)
    found = gradients(threaded(head), head, images())
    assert found[0] is None or head.project.weight.grad is None
    assert head.project.weight.grad is None
    assert head.restore.weight.grad is not None


def test_threads_see_every_change_of_the_weights() -> None:
    head, twin = small_head(**QUIET), small_head(**QUIET)
    network, batch = threaded(head), images()
    parts = [(network, head), (twin, twin)]
    optimizers = [torch.optim.SGD(own.parameters(), lr=0.1) for _, own in parts]
    for _ in range(3):
        for (runs, own), optimizer in zip(parts, optimizers, strict=True):
            gradients(runs, own, batch)
            optimizer.step()
    for found, expected in zip(head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    other = small_head(**QUIET, seed=9)
    head.load_state_dict(other.state_dict())
    head.set_feature_statistics(torch.ones(CHANNELS), torch.full((CHANNELS,), 3.0))
    torch.testing.assert_close(network(batch).reconstruction, other(batch).reconstruction)
    head.double()  # swaps the memory of the weights instead of writing to it
    assert network(batch.double()).reconstruction.dtype == torch.float64


def test_a_seed_repeats_the_noise_and_each_share_has_its_own() -> None:
    head = small_head(jitter_scale=40.0, dropout=0.0)
    network = threaded(head)
    twins = images(4).repeat(2, 1, 1, 1)  # both threads get the same images
    found = []
    for _ in range(2):
        torch.manual_seed(11)
        found.append(network(twins).reconstruction)
    found.append(network(twins).reconstruction)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    first, second = found[0].split(4)
    assert not torch.allclose(first, second)


def test_dropout_is_repeated_by_a_seed() -> None:
    head = small_head(jitter_scale=0.0, dropout=0.5)
    network = threaded(head)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(gradients(network, head, images()))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))  # type: ignore[arg-type]
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))  # type: ignore[arg-type]


def test_small_batches_and_evaluation_with_gradients_take_the_head_as_it_is() -> None:
    head = small_head(**QUIET)
    network = ThreadedHead(head, 2, images_a_thread=4)
    network(images(7))
    network.eval()(images(8))
    with torch.no_grad():
        network.train()(images(8))
        network.eval()(images(7))
    assert not network._pools
    network.train()(images(8))
    assert set(network._pools) == {2}


@pytest.mark.parametrize("count", [8, 21])
def test_evaluation_gives_the_answers_of_the_whole_batch(count: int) -> None:
    head = small_head().eval()
    network = ThreadedHead(head, 2, images_a_thread=4).eval()
    with torch.no_grad():
        for found, expected in zip(network(images(count)), head(images(count)), strict=True):
            torch.testing.assert_close(found, expected)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = network(images(count)), head(images(count))
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0, atol=1e-5)
    assert set(network._pools) == {2}


def test_more_threads_than_shares_work_on_them_together() -> None:
    head = small_head(**QUIET)
    network = ThreadedHead(head, 7, images_a_thread=4)
    expected = gradients(head, head, images(12))
    for found, own in zip(gradients(network, head, images(12)), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)
    (pool,) = network._pools.values()
    assert list(pool.map(lambda _: torch.get_num_threads(), range(3))) == [2, 2, 2]


def test_second_backward_pass_is_refused() -> None:
    loss = LOSS(threaded(small_head(**QUIET))(images()))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_autocast_reaches_the_threads() -> None:
    head = small_head(**QUIET)
    with torch.autocast("cpu", torch.bfloat16):
        expected = head(images())
        found = threaded(head)(images())
    assert found.reconstruction.dtype == expected.reconstruction.dtype == torch.bfloat16
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0.05, atol=0.05)
    LOSS(found).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in head.parameters())


def test_an_error_in_a_thread_reaches_the_caller_and_the_next_step_works() -> None:
    network = threaded(small_head(**QUIET))
    with pytest.raises(ValueError, match="features have shape"):
        network(torch.zeros(4, CHANNELS + 1, GRID, GRID))
    LOSS(network(images())).backward()


def test_it_has_the_weights_of_its_head_alone() -> None:
    head = small_head()
    network = threaded(head)
    network(images())
    assert [id(p) for p in network.parameters()] == [id(p) for p in head.parameters()]
    assert set(network.state_dict()) == {f"head.{name}" for name in head.state_dict()}


def test_a_head_on_the_cpu_is_trained_in_threads_and_another_network_as_it_is() -> None:
    head = small_head()
    network = replicate(head, "cpu")
    assert isinstance(network, ThreadedHead)
    assert network.head is head
    assert network.workers == torch.get_num_threads()
    assert replicate(small_head(), "meta").__class__ is MCMIADHead
