"""In which order training sees its slices, in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import ignite.distributed as idist
import torch
from torch.utils.data import DataLoader, Sampler

from mcmiad_monai.data.features import FeatureDataset


class GlobalBatches(Sampler[list[int]]):
    """Batches of an epoch, the same in every process, of which each process takes its share.

    A process takes every ``world_size``-th slice of a batch, so that training in several processes
    sees the batches that training in one does. A last batch that cannot be shared evenly is filled
    up with its own first slices, and so is every batch whose size is no multiple of the processes.

    The slices of one part are each seen once an epoch. Those of several parts are drawn with
    replacement and with equal shares, so that a large part does not drown a small one.

    The global generator decides, which the trainer seeds for each epoch alike in all processes.

    Parameters
    ----------
    dataset : FeatureDataset
        What is drawn from.
    batch_size : int
        Of all processes together.
    min_steps : int
        A dataset of too few slices for so many full batches is drawn from with replacement until an
        epoch has them: one image alone would otherwise give one step an epoch.

    Raises
    ------
    ValueError
        If there are more processes than slices in a batch.
    """

    def __init__(self, dataset: FeatureDataset, batch_size: int, min_steps: int = 1) -> None:
        if batch_size < idist.get_world_size():
            raise ValueError(
                f"batch_size {batch_size} is shared by {idist.get_world_size()} processes; give at "
                "least one slice to each."
            )
        self.dataset, self.batch_size = dataset, batch_size
        # one step of fewer slices than a batch is a step
        self.least = min_steps * batch_size if min_steps > 1 else 0

    @property
    def total(self) -> int:
        """Slices of an epoch."""
        return max(len(self.dataset), self.least)

    def __len__(self) -> int:
        return math.ceil(self.total / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        order = self._order(torch.Generator().manual_seed(seed))
        rank, processes = idist.get_rank(), idist.get_world_size()
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            full = math.ceil(len(batch) / processes) * processes
            yield list(islice(cycle(batch), full))[rank::processes]

    def _order(self, generator: torch.Generator) -> list[int]:
        n, weights = len(self.dataset), self.dataset.weights()
        if weights is None and n == self.total:
            return torch.randperm(n, generator=generator).tolist()
        shares = torch.ones(n) if weights is None else weights
        return torch.multinomial(shares, self.total, True, generator=generator).tolist()


def training_loader(
    dataset: FeatureDataset,
    *,
    batch_size: int,
    min_steps: int = 1,
    device: str | torch.device = "cpu",
) -> DataLoader[Any]:
    """Batches of features for the trainer; see `GlobalBatches`.

    Parameters
    ----------
    dataset : FeatureDataset
        Training slices; their augmented copies are drawn with them.
    batch_size : int
        Slices a step, in all processes together.
    device : str or torch.device
        Where the training runs; memory for a GPU is pinned.
    """
    dataset = dataset.with_copies
    return DataLoader(
        dataset,
        batch_sampler=GlobalBatches(dataset, batch_size, min_steps),
        pin_memory=torch.device(device).type == "cuda",
    )
