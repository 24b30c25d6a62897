"""A step as a CUDA graph is the step without one: output, gradients, random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_heads import CHANNELS, GRID, QUIET, small_head
from torch import Tensor

from mcmiad_monai import graphed
from mcmiad_monai.distributed import replicate
from mcmiad_monai.graphed import GraphedHead
from mcmiad_monai.losses import ReconstructionLoss
from mcmiad_monai.networks.head import MCMIADHead

LOSS = ReconstructionLoss(cosine_weight=5.0, balance_weight=1.0)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def images(count: int = 8, device: str = "cuda") -> Tensor:
    drawn = torch.randn(count, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(5))
    return drawn.to(device)


def wide_head(**options: Any) -> MCMIADHead:
    """Of widths that grouped products take."""
    return small_head(**{"dim": 32, "hidden": 64, **options}).cuda().train()


def train(network: torch.nn.Module, head: MCMIADHead, *, half: bool) -> list[Tensor]:
    """Losses of steps with noise, two of them on smaller batches; and the weights after them."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, fused=True)
    losses = []
    for count in (8, 8, 8, 5, 8, 5, 8):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            output = network(images(count))
        loss = LOSS(output)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(p.detach().clone() for p in head.parameters())]


@on_gpu
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options", [{}, {"fusion_mode": "prompts"}, {"ffn_per_round": 2, "top_k": 1}], ids=str
)
def test_training_is_that_without_graphs(options: dict[str, Any], *, half: bool) -> None:
    plain, head = wide_head(**options), wide_head(**options)
    network = replicate(head, "cuda")
    assert isinstance(network, GraphedHead)
    expected, found = train(plain, plain, half=half), train(network, head, half=half)
    assert len(network._graphs) == 2
    close = {"rtol": 2e-2, "atol": 2e-2} if half else {"rtol": 1e-4, "atol": 1e-5}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **close)


@on_gpu
def test_gradients_add_up_over_steps() -> None:
    plain, head = wide_head(**QUIET), wide_head(**QUIET)
    network = GraphedHead(head)
    for runs in (plain, network):
        for count in (8, 8, 8):
            LOSS(runs(images(count))).backward()
    for one, other in zip(head.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@on_gpu
def test_kinds_of_batches_beyond_those_that_are_kept_run_without_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphed, "GRAPHS", 1)
    plain, head = wide_head(**QUIET), wide_head(**QUIET)
    network = GraphedHead(head)
    for count in (8, 5, 8, 5, 8, 5):
        found, expected = network(images(count)), plain(images(count))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert [kind.shape[0] for kind in network._graphs] == [8]


@on_gpu
def test_evaluation_sees_the_weights_of_the_graph() -> None:
    head = wide_head(**QUIET)
    network = GraphedHead(head)
    train(network, head, half=False)
    expected = network(images())
    network.eval()
    with torch.no_grad():
        found = network(images())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_a_gpu_it_is_the_head() -> None:
    head = small_head(**QUIET)
    batch = images(device="cpu")
    for one, other in zip(GraphedHead(head)(batch), head(batch), strict=True):
        torch.testing.assert_close(one, other)
