"""A training step as a CUDA graph is the step without one: output, gradients, random numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from small_heads import CHANNELS, GRID, QUIET, small_head
from torch import Tensor, nn

from mcmiad_monai.networks import moe
from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.networks.moe import MixtureOfExperts
from mcmiad_monai.runtime import gpu
from mcmiad_monai.runtime.gpu import GraphedHead
from mcmiad_monai.training.distributed import replicate

LOSS = ReconstructionLoss(cosine_weight=5.0, balance_weight=1.0)
GPU = torch.cuda.is_available()
#: Images of each step.
BATCHES = (8, 8, 8, 5, 8, 5, 8)


def emulated(call: Callable[..., Any], arguments: tuple[Tensor, ...], **_: Any) -> Any:
    """Do on the CPU what PyTorch's function of this purpose does: static tensors, run again."""
    static = [a.detach() for a in arguments[:1]] + list(arguments[1:])
    kept: dict[str, Any] = {}

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
            assert [a.data_ptr() for a in inputs[1:]] == [a.data_ptr() for a in static[1:]]
            static[0].copy_(inputs[0])
            with torch.enable_grad():
                kept["outputs"] = call(*static)
            return tuple(o.detach() for o in kept["outputs"])

        @staticmethod
        def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            pairs = zip(kept["outputs"], gradients, strict=True)
            outputs, given = zip(*((o, g) for o, g in pairs if o.requires_grad), strict=True)
            learned = [a for a in static if a.requires_grad]
            found = torch.autograd.grad(outputs, learned, given, allow_unused=True)
            buffers = kept.setdefault("gradients", [f if f is None else f.clone() for f in found])
            for buffer, new in zip(buffers, found, strict=True):
                if new is not None:
                    buffer.copy_(new)
            rest = iter(buffers)
            padded = [next(rest) if a.requires_grad else None for a in static]
            return tuple(p if p is None else p.detach() for p in padded)

    return Graphed.apply


@pytest.fixture(autouse=True, params=["gpu", "emulated"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "gpu":
        if not GPU:
            pytest.skip("there is no GPU here")
        return "cuda"
    monkeypatch.setattr(gpu, "on_gpu", lambda _: True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", emulated)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: torch.set_rng_state(state))
    monkeypatch.setattr(MixtureOfExperts, "is_dense", lambda *_: True)
    return "cpu"


def images(device: str, count: int = 8) -> Tensor:
    drawn = torch.randn(count, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(5))
    return drawn.to(device)


def head_on(device: str, **options: Any) -> MCMIADHead:
    return small_head(**options).to(device).train()


def train(network: nn.Module, head: MCMIADHead, device: str, *, half: bool = False) -> list[Tensor]:
    """Losses of steps with noise, two of them on smaller batches; and the weights after them."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, fused=True)
    losses = []
    for count in BATCHES:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            output = network(images(device, count))
        loss = LOSS(output)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(p.detach().clone() for p in head.parameters())]


def assert_close(found: Iterable[Any], expected: Iterable[Any], tolerance: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dense", [False, True], ids=["grouped", "dense"])
@pytest.mark.parametrize(
    "options", [{}, {"fusion_mode": "prompts"}, {"ffn_per_round": 2, "top_k": 1}], ids=str
)
def test_training_is_that_without_graphs(
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    *,
    dense: bool,
    half: bool,
) -> None:
    if device == "cpu" and half:
        pytest.skip("graphs of a GPU have the autocast of a GPU")
    if device == "cpu" and not dense:
        pytest.skip("the emulation has fixed shapes")
    monkeypatch.setattr(moe, "DENSE_TOKENS", 2**13 if dense else 0)
    plain, head = head_on(device, **options), head_on(device, **options)
    network = GraphedHead(head)
    expected = train(plain, plain, device, half=half)
    found = train(network, head, device, half=half)
    assert len(network._graphs) == (2 if dense else 0)  # grouped shapes depend on the data
    if half:  # losses alone: AdamW makes steps of equal size of gradients as small as rounding
        found, expected = found[: len(BATCHES)], expected[: len(BATCHES)]
    assert_close(found, expected, 3e-2 if half else 1e-4)


def test_a_head_on_a_gpu_is_trained_as_graphs(device: str) -> None:
    head = head_on(device)
    assert isinstance(replicate(head, device), GraphedHead) == (device == "cuda")


def test_gradients_add_up_over_steps(device: str) -> None:
    plain, head = head_on(device, **QUIET), head_on(device, **QUIET)
    for own, runs in ((plain, plain), (head, GraphedHead(head))):
        for step in range(5):
            if step < 3:  # then gradients that the graph gave are added to
                own.zero_grad(set_to_none=True)
            LOSS(runs(images(device))).backward()
    assert_close((p.grad for p in head.parameters()), (p.grad for p in plain.parameters()))


def test_weights_that_do_not_learn_get_no_gradient(device: str) -> None:
    head = head_on(device, **QUIET)
    head.project.requires_grad_(False)
    network = GraphedHead(head)
    for _ in range(3):
        LOSS(network(images(device))).backward()
    assert head.project.weight.grad is None
    assert head.restore.weight.grad is not None


def test_kinds_of_batches_beyond_those_that_are_kept_run_without_a_graph(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRAPHS", 1)
    plain, head = head_on(device, **QUIET), head_on(device, **QUIET)
    network = GraphedHead(head)
    for count in (8, 5, 8, 5, 8, 5):
        assert_close(network(images(device, count)), plain(images(device, count)))
    assert [kind.shape[0] for kind in network._graphs] == [8]


def test_evaluation_sees_the_weights_of_the_graph(device: str) -> None:
    head = head_on(device, **QUIET)
    network = GraphedHead(head)
    train(network, head, device)
    expected = network(images(device))
    network.eval()
    with torch.no_grad():
        assert_close(network(images(device)), expected)


def test_weights_that_moved_are_captured_again(device: str) -> None:
    head, other = head_on(device, **QUIET), head_on(device, **QUIET, seed=9)
    network = GraphedHead(head)
    for _ in range(3):
        network(images(device))
    for mine, its in zip(head.parameters(), other.parameters(), strict=True):
        mine.data = its.data.clone()
    for _ in range(3):
        assert_close(network(images(device)), other(images(device)))


def test_compiled_steps_have_the_gradients_of_the_head(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu":  # what compiles for the CPU needs a compiler
        compiling = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", compiling)
    plain, head = head_on(device, **QUIET), head_on(device, **QUIET)
    for own, runs in ((plain, plain), (head, GraphedHead(head, compiled=True))):
        for _ in range(3):
            own.zero_grad(set_to_none=True)
            LOSS(runs(images(device))).backward()
    assert_close((p.grad for p in head.parameters()), (p.grad for p in plain.parameters()))


def test_without_a_gpu_it_is_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda features: features.is_cuda)
    head, batch = head_on("cpu", **QUIET), images("cpu")
    network = GraphedHead(head)
    for _ in range(3):
        assert_close(network(batch), head(batch))
    assert not network._graphs
