"""Training steps of the head on a GPU as CUDA graphs: hundreds of kernels, launched at once.

For a batch of 16 most kernels of the head are shorter than their launch from Python, so that a GPU
mostly waits. A graph holds the kernels of one shape of batch and is launched as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.aliases import alias
from mcmiad_monai.networks.head import HeadOutput, MCMIADHead

#: Shapes of batches that are kept as graphs: a full batch, and the last one of an epoch.
GRAPHS = 2


class GraphedHead(nn.Module):
    """A head on a GPU whose training steps, forward and backward, are CUDA graphs.

    To an optimiser and a loss it is the head itself. The first step of a shape captures it, so that
    a resumed training is that of graphs from its start. Further shapes than `GRAPHS`, evaluation,
    and batches for which the head asks the GPU how many tokens an expert has, run without one.

    Parameters
    ----------
    head : MCMIADHead
        Trained in place; keep it for its state dict, which has no wrapper's prefix. What it is made
        of, as its dropout, must not change once a step was taken.
    compiled : bool
        Let `torch.compile` fuse the kernels first, which takes half a minute and needs a C
        compiler; dropout and jitter then draw other numbers.
    """

    def __init__(self, head: MCMIADHead, *, compiled: bool = False) -> None:
        super().__init__()
        self.head, self.compiled = head, compiled
        self._graphs: dict[_Kind, Callable[..., Any]] = {}
        self._pool: Any = None

    def forward(self, features: Tensor) -> HeadOutput:
        """Reconstruct features of shape (B, C, grid, grid), as the head does."""
        learns = self.training and torch.is_grad_enabled()
        if not learns or not on_gpu(features) or torch.compiler.is_compiling():
            return self.head(features)
        kind = self._kind(features)
        graph = self._graphs.get(kind)
        if graph is None:
            products = kind.autocast or self.head.project.weight.dtype
            fixed = self.head.decoder.has_fixed_shapes(len(features), products)
            if not fixed or len(self._graphs) == GRAPHS:
                return self.head(features)
            graph = self._graphs[kind] = self._captured(kind, features)
        self._keep_gradients()
        target, restored, balance = graph(features, *self.head.parameters())
        return HeadOutput(target.detach(), restored, balance)

    def _kind(self, features: Tensor) -> _Kind:
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        weights = tuple((p.data_ptr(), p.requires_grad) for p in self.head.parameters())
        return _Kind(tuple(features.shape), features.dtype, half, weights)

    def _captured(self, kind: _Kind, features: Tensor) -> Callable[..., Any]:
        """The graph of a kind of batch; random numbers go on as if none had been captured."""
        # a head of its own: weights that a graph of an earlier step still holds cannot be captured
        twin = alias(self.head)
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

    def _keep_gradients(self) -> None:
        """Give gradients that are still there memory of their own: a graph writes over its own.

        Without this, gradients added up over several steps would be those of the last.
        """
        for parameter in self.head.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()


def on_gpu(features: Tensor) -> bool:
    """Whether graphs can hold what is done with a tensor."""
    return features.is_cuda


class _Kind(NamedTuple):
    """What a graph is captured for; of the weights their places, and whether they learn."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    autocast: torch.dtype | None
    weights: tuple[tuple[int, bool], ...]
