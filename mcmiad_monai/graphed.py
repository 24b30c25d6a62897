"""Training steps of the head on a GPU as CUDA graphs: hundreds of kernels, launched at once.

For a batch of 16 most kernels of the head are shorter than their launch from Python, so that a GPU
mostly waits. A graph holds the kernels of one shape of batch and is launched as a whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.head import HeadOutput, MCMIADHead
from mcmiad_monai.networks.moe import balance_loss

#: Shapes of batches that are kept as graphs: a full batch, and the last one of an epoch.
GRAPHS = 2


class GraphedHead(nn.Module):
    """A head on a GPU whose training steps, forward and backward, are CUDA graphs.

    To an optimiser and a loss it is the head itself. The first step of a shape is
    computed without a graph, the second is captured; further shapes than `GRAPHS`, evaluation, and
    batches for which the head asks the GPU how many tokens an expert has, run without.

    Parameters
    ----------
    head : MCMIADHead
        Trained in place; keep it for its state dict, which has no wrapper's prefix.
    compiled : bool
        Let `torch.compile` fuse the kernels first, which takes most of a minute and needs a C
        compiler; dropout and jitter then draw other numbers.
    """

    def __init__(self, head: MCMIADHead, *, compiled: bool = False) -> None:
        super().__init__()
        self.head, self.compiled = head, compiled
        self._seen: set[_Kind] = set()
        # in a dictionary, they are no modules of this one
        self._graphs: dict[_Kind, _Reconstruction] = {}
        self._pool = None

    def forward(self, features: Tensor) -> HeadOutput:
        """Reconstruct features of shape (B, C, grid, grid), as the head does."""
        learns = self.training and torch.is_grad_enabled()
        if not learns or not features.is_cuda or torch.compiler.is_compiling():
            output: HeadOutput = self.head(features)
            return output
        kind = _Kind(
            tuple(features.shape),
            features.dtype,
            torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None,
            tuple((p.data_ptr(), p.requires_grad) for p in self.head.parameters()),
        )
        graph = self._graphs.get(kind)
        if graph is None and kind in self._seen and len(self._graphs) < GRAPHS:
            graph = self._graphs[kind] = self._captured(kind, features)
        weight = self.head.project.weight
        if self.head.decoder.has_fixed_shapes(features.shape[0], kind.autocast or weight.dtype):
            self._seen.add(kind)
        if graph is None:
            return self.head(features)
        self._keep_gradients()
        target, restored, importance = graph(features)
        return HeadOutput(target, restored, balance_loss(importance))

    def _captured(self, kind: _Kind, features: Tensor) -> _Reconstruction:
        """The graph of a kind of batch; random numbers go on as if none had been captured."""
        reconstruction = _Reconstruction(self.head, kind.autocast, compiled=self.compiled)
        state = torch.cuda.get_rng_state(features.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(features.device), torch.autocast("cuda", enabled=False):
            graphed = torch.cuda.make_graphed_callables(
                reconstruction,
                (features.detach().clone(),),
                allow_unused_input=True,
                pool=self._pool,
            )
        torch.cuda.set_rng_state(state, features.device)
        return graphed

    def _keep_gradients(self) -> None:
        """Give gradients that are still there memory of their own: a graph writes over its own.

        Without this, gradients added up over several steps would be those of the last.
        """
        for parameter in self.head.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()


class _Kind(NamedTuple):
    """What a graph is captured for; of the weights their places, and whether they learn."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    autocast: torch.dtype | None
    weights: tuple[tuple[int, bool], ...]


class _Reconstruction(nn.Module):
    """What is captured: the head but for its balance loss, in a type of products."""

    def __init__(self, head: MCMIADHead, autocast: torch.dtype | None, *, compiled: bool) -> None:
        super().__init__()
        self.head, self.autocast = head, autocast  # a module of this one for its parameters
        run = head.reconstruct
        self.run = torch.compile(run, dynamic=False) if compiled else run

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        on = self.autocast is not None
        # converted weights may not be kept from one replay to the next
        with torch.autocast("cuda", self.autocast, enabled=on, cache_enabled=False):
            return self.run(features)
