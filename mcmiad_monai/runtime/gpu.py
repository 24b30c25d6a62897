"""The fastest forms on a GPU: of a slice network for inference, and of the head for training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.head import HeadOutput, MCMIADHead
from mcmiad_monai.runtime.precision import Precision, ProductsIn

#: Slices in one call on an accelerator: some 3 GB of activations at most for EfficientNet-B4.
ACCELERATOR_SLICES = 64
#: How images lie in memory; convolutions of each type have their fastest kernels in one of them.
LAYOUTS: dict[Precision, torch.memory_format] = {
    "float32": torch.contiguous_format,
    "bfloat16": torch.channels_last,
}

#: Shapes of training batches that are kept as graphs: a full batch, and the last one of an epoch.
GRAPHS = 2


def accelerated(
    network: nn.Module,
    device: torch.device,
    precision: Precision = "float32",
    *,
    compiled: bool = False,
) -> nn.Module:
    """Prepare a slice network for inference on a GPU.

    Parameters
    ----------
    network : nn.Module
        Maps images (B, 1, S, S) to a tensor (B, …); BatchNorms folded. Left as it is.
    compiled : bool
        Let `torch.compile` fuse kernels, which takes half a minute at the first call and needs a C
        compiler.
    """
    own = copy.deepcopy(network).to(device).to(memory_format=LAYOUTS[precision]).eval()
    if precision == "bfloat16":
        for module in own.modules():
            if isinstance(module, nn.Conv2d):  # once, where autocast would convert in each call
                module.to(torch.bfloat16)
    if not compiled:
        return ProductsIn(own, precision)
    own.compile(dynamic=False)
    return FixedBatches(ProductsIn(own, precision))


class FixedBatches(nn.Module):
    """A slice network that always sees batches of one size, the last one filled up.

    Parameters
    ----------
    network : nn.Module
        Maps images (B, 1, S, S) to a tensor (B, …).
    slices_at_once : int
        The size.
    """

    def __init__(self, network: nn.Module, slices_at_once: int = ACCELERATOR_SLICES) -> None:
        super().__init__()
        self.network, self.slices_at_once = network, slices_at_once

    def forward(self, image: Tensor) -> Tensor:
        """Map any number of images."""
        return torch.cat([self._filled_up(part) for part in image.split(self.slices_at_once)])

    def _filled_up(self, part: Tensor) -> Tensor:
        missing = self.slices_at_once - part.shape[0]
        full = F.pad(part, (0, 0) * (part.ndim - 1) + (0, missing)) if missing else part
        output: Tensor = self.network(full)
        return output[: part.shape[0]]


class GraphedHead(nn.Module):
    """A head on a GPU whose training steps, forward and backward, are CUDA graphs.

    For a batch of 16 most kernels of the head take less time than their launch from Python. A graph
    holds the kernels of one shape of batch and launches all of them at once.

    An optimiser and a loss use it as the head itself. The first step of a shape captures its graph,
    so that a resumed training uses graphs from its start too. Evaluation, more shapes than
    `GRAPHS`, and batches whose shapes inside the head depend on the data run without a graph.

    Parameters
    ----------
    head : MCMIADHead
        Trained in place. Use its own state dict, which has no prefix. Its structure and options,
        such as dropout, must not change after the first step.
    compiled : bool
        Let `torch.compile` fuse kernels first, which takes half a minute and needs a C compiler.
        Dropout and jitter then draw other random numbers.
    """

    def __init__(self, head: MCMIADHead, *, compiled: bool = False) -> None:
        super().__init__()
        self.head, self.compiled = head, compiled
        self._graphs: dict[_Kind, Callable[..., Any]] = {}
        self._pool: Any = None

    def forward(self, features: Tensor) -> HeadOutput:
        """Reconstruct features of shape (B, C, grid, grid), as the head does."""
        trains = self.training and torch.is_grad_enabled()
        if not trains or not on_gpu(features) or torch.compiler.is_compiling():
            return self.head(features)
        kind = self._kind(features)
        graph = self._graphs.get(kind)
        if graph is None:
            fixed = self.head.decoder.has_fixed_shapes(len(features))
            if not fixed or len(self._graphs) == GRAPHS:
                return self.head(features)
            graph = self._graphs[kind] = self._captured(kind, features)
        self._copy_gradients()
        target, restored, balance = graph(features, *self.head.parameters())
        return HeadOutput(target.detach(), restored, balance)

    def _kind(self, features: Tensor) -> _Kind:
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        weights = tuple((p.data_ptr(), p.requires_grad) for p in self.head.parameters())
        return _Kind(tuple(features.shape), features.dtype, half, weights)

    def _captured(self, kind: _Kind, features: Tensor) -> Callable[..., Any]:
        """Capture the graph of a kind of batch; the state of random numbers is put back."""
        # a copy: weights that the graph of an earlier step still holds cannot be captured
        twin = copy_that_shares_memory(self.head)
        run = torch.compile(twin, dynamic=False) if self.compiled else twin

        def call(image: Tensor, *_weights: Tensor) -> tuple[Tensor, ...]:
            # converted weights may not be kept from one replay to the next
            with torch.autocast(
                "cuda", kind.autocast, enabled=kind.autocast is not None, cache_enabled=False
            ):
                return tuple(run(image))

        state = torch.cuda.get_rng_state(features.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(features.device), torch.autocast("cuda", enabled=False):
            graph: Callable[..., Any] = torch.cuda.make_graphed_callables(
                call,
                (features.detach().clone(), *twin.parameters()),
                allow_unused_input=True,
                pool=self._pool,
            )
        torch.cuda.set_rng_state(state, features.device)
        return graph

    def _copy_gradients(self) -> None:
        """Move gradients of earlier steps out of the graph's memory, which a replay overwrites.

        Without this, gradients accumulated over several steps would be those of the last.
        """
        for parameter in self.head.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()


def on_gpu(features: Tensor) -> bool:
    """Whether graphs can hold what is done with a tensor."""
    return features.is_cuda


def copy_that_shares_memory(head: MCMIADHead) -> MCMIADHead:
    """Copy a head into modules of its own, whose weights lie in the memory of the first."""
    twin = copy.deepcopy(head)
    for own, shared in zip(_tensors(twin), _tensors(head), strict=True):
        own.data = shared.data
    return twin


def _tensors(head: MCMIADHead) -> Iterator[Tensor]:
    yield from head.parameters()
    yield from head.buffers()


class _Kind(NamedTuple):
    """What a graph is captured for; of the weights their addresses, and whether they train."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    autocast: torch.dtype | None
    weights: tuple[tuple[int, bool], ...]
