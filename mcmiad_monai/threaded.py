"""Training steps of the head in several threads, each with a share of the batch.

Cores that share a layer wait for each other at its end, and again at the end of the next; cores
with images of their own wait once a step. What they hold stays in their caches, and random numbers,
sorting and all else that PyTorch does in one thread is done in each.
"""

from __future__ import annotations

import copy
import functools
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
from mcmiad_monai.threads import pool_of_threads

#: Fewer images leave a thread's matrix products too small to be fast.
IMAGES_A_THREAD = 4


class ThreadedHead(nn.Module):
    """A head on the CPU whose training steps are computed by threads, forward and backward.

    To an optimiser, a loss and DistributedDataParallel it is the head itself: output and gradients
    are those of the whole batch; features get no gradient. Dropout and jitter draw other numbers
    than without threads, again the same for the same seed and number of threads. In evaluation and
    for batches too small to share the head runs as it is.

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
        learns = self.training and torch.is_grad_enabled()
        if not learns or shares < 2 or torch.compiler.is_compiling():
            output: HeadOutput = self.head(features)
            return output
        target, restored, importance = _Shared.apply(
            self, features.detach().tensor_split(shares), *self._learned()
        )
        return HeadOutput(target, restored, balance_loss(importance))

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
        kind = torch.get_autocast_dtype("cpu")
        half = torch.is_autocast_enabled("cpu")

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


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Sum in the order of the shares, so that it is the same each time; None of a weight unused."""
    present = [gradient for gradient in gradients if gradient is not None]
    return functools.reduce(torch.add, present) if present else None
