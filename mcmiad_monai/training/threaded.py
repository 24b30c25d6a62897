"""Steps of the head in several threads, each with a share of the batch.

Cores that share a layer wait for each other at its end, and again at the end of the next; cores
with images of their own wait once a step. What they hold stays in their caches, and random numbers,
sorting and all else that PyTorch does in one thread is done in each.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mcmiad_monai.networks.aliases import share_memory
from mcmiad_monai.networks.head import HeadOutput, MCMIADHead
from mcmiad_monai.networks.moe import balance_loss
from mcmiad_monai.networks.randomness import own_numbers
from mcmiad_monai.runtime.threads import pool_of_threads

#: Fewer images leave a thread's matrix products too small to be fast.
IMAGES_A_THREAD = 4
#: Images that a thread takes at a time where nothing is kept for a backward pass.
IMAGES_EVALUATED = 8


class ThreadedHead(nn.Module):
    """A head on the CPU that threads compute: training steps, forward and backward, and answers.

    To an optimiser, a loss and DistributedDataParallel it is the head itself: output and gradients
    are those of the whole batch; features get no gradient. Dropout and jitter draw other numbers
    than without threads, again the same for the same seed and number of threads. For batches too
    small to share, and in evaluation with gradients, the head runs as it is.

    Parameters
    ----------
    head : MCMIADHead
        Trained in place; keep it for its state dict, which has no wrapper's prefix.
    workers : int, optional
        Threads; by default those that PyTorch uses.
    images_a_thread : int
        A batch has no more shares than leave each that many images; where there are more threads,
        several work on each share.
    """

    def __init__(
        self,
        head: MCMIADHead,
        workers: int | None = None,
        *,
        images_a_thread: int = IMAGES_A_THREAD,
    ) -> None:
        super().__init__()
        self.head = head
        self.workers = workers or torch.get_num_threads()
        self.images_a_thread = images_a_thread
        # begun at the first step, by the number of shares, on which alone rounding may depend
        self._pools: dict[int, ThreadPoolExecutor] = {}
        # in a tuple, they are no modules of this one
        self._copies: tuple[MCMIADHead, ...] = ()

    def forward(self, features: Tensor) -> HeadOutput:
        """Reconstruct features of shape (B, C, grid, grid), as the head does."""
        shares = min(self.workers, len(features) // self.images_a_thread)
        differentiates = torch.is_grad_enabled()
        if shares < 2 or differentiates != self.training or torch.compiler.is_compiling():
            output: HeadOutput = self.head(features)
            return output
        if differentiates:
            parts = features.detach().tensor_split(shares)
            target, restored, importance = _Shared.apply(self, parts, *self._learned())
        else:
            target, restored, importance = self._answered(features, shares)
        return HeadOutput(target, restored, balance_loss(importance))

    def _answered(self, features: Tensor, shares: int) -> tuple[Tensor, Tensor, Tensor]:
        """Target, reconstruction and importance without a graph."""
        kind, half = _autocast()

        def run(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.no_grad(), torch.autocast("cpu", kind, enabled=half):
                return self.head.reconstruct(part)

        parts = features.split(min(IMAGES_EVALUATED, math.ceil(len(features) / shares)))
        target, restored, importance = zip(*self._threads(shares).map(run, parts), strict=True)
        return torch.cat(target), torch.cat(restored), torch.stack(importance).sum(dim=0)

    def _learned(self) -> list[Tensor]:
        return [p for p in self.head.parameters() if p.requires_grad]

    def _threads(self, shares: int) -> ThreadPoolExecutor:
        if shares not in self._pools:
            cores = self.workers // shares
            self._pools[shares] = pool_of_threads(shares, "steps", cores=cores)
        return self._pools[shares]

    def _replicas(self, count: int) -> Sequence[MCMIADHead]:
        """Heads with gradients of their own, and the memory of this head's weights."""
        if len(self._copies) < count:
            self._copies = tuple(copy.deepcopy(self.head) for _ in range(count))
        for replica in self._copies[:count]:
            share_memory(replica, self.head)
        return self._copies[:count]


class _Share(NamedTuple):
    """What one thread computed, with its graph."""

    learned: Sequence[Tensor]
    outputs: tuple[Tensor, Tensor]
    target: Tensor


class _Shared(torch.autograd.Function):
    """Images and weights → target, reconstruction and importance of the experts."""

    @staticmethod
    def forward(
        ctx: Any, owner: ThreadedHead, parts: Sequence[Tensor], *_learned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kind, half = _autocast()

        def run(head: MCMIADHead, part: Tensor, seed: int) -> _Share:
            with torch.enable_grad(), torch.autocast("cpu", kind, enabled=half), own_numbers(seed):
                target, restored, importance = head.reconstruct(part)
            learned = [p for p in head.parameters() if p.requires_grad]
            return _Share(learned, (restored, importance), target)

        heads = owner._replicas(len(parts))
        # from the global generator, whose state the checkpoints keep
        seeds = torch.randint(2**62, (len(parts),)).tolist()
        threads = owner._threads(len(parts))
        shares = list(threads.map(run, heads, parts, seeds))
        ctx.shares, ctx.threads = shares, threads
        target = torch.cat([share.target for share in shares])
        ctx.mark_non_differentiable(target)
        restored, importance = zip(*(share.outputs for share in shares), strict=True)
        return target, torch.cat(restored).detach(), torch.stack(importance).detach().sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _target: Tensor, restored: Tensor, importance: Tensor
    ) -> tuple[Tensor | None, ...]:
        def run(share: _Share, gradient: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(
                share.outputs, share.learned, (gradient, importance), allow_unused=True
            )

        if ctx.shares is None:
            raise RuntimeError(
                "the gradients of this step were computed before, and its graph is gone; a step in "
                "threads has one backward pass. Call the network again."
            )
        sizes = [len(share.target) for share in ctx.shares]
        found = ctx.threads.map(run, ctx.shares, restored.split(sizes))
        ctx.shares = None  # the graphs are spent
        return None, None, *(_sum(of_one) for of_one in zip(*found, strict=True))


def _autocast() -> tuple[torch.dtype, bool]:
    """Type of the products that the caller asks for, and whether it does; no thread inherits it."""
    return torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Sum in the order of the shares, so that it is the same each time; None of a weight unused."""
    present = [gradient for gradient in gradients if gradient is not None]
    return functools.reduce(torch.add, present) if present else None
