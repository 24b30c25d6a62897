"""In which order training sees its slices, in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.training.distributed import rank, world_size
from mcmiad_monai.training.on_device import loader


class GlobalBatches(Sampler[list[int]]):
    """Batches of an epoch, the same in every process, of which each process takes its share.

    A process takes every ``world_size``-th slice of a batch, so that training in several processes
    sees the batches that training in one does. A last batch that cannot be shared evenly is filled
    up with its own first slices, and so is every batch whose size is no multiple of the processes.

    Slices of one modality are each seen once an epoch. Those of several are drawn with replacement
    and with equal shares, so that a large set does not drown a small one.

    The global generator decides, which the trainer seeds for each epoch alike in all processes.

    Parameters
    ----------
    dataset : FeatureDataset
        What is drawn from.
    batch_size : int
        Of all processes together.

    Raises
    ------
    ValueError
        If there are more processes than slices in a batch.
    """

    def __init__(self, dataset: FeatureDataset, batch_size: int) -> None:
        if batch_size < world_size():
            raise ValueError(
                f"batch_size {batch_size} is shared by {world_size()} processes; give at least "
                "one slice to each."
            )
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        order = self._order(torch.Generator().manual_seed(seed))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            full = math.ceil(len(batch) / world_size()) * world_size()
            yield list(islice(cycle(batch), full))[rank() :: world_size()]

    def _order(self, generator: torch.Generator) -> list[int]:
        n = len(self.dataset)
        weights = self.dataset.weights()
        if weights is None:
            return torch.randperm(n, generator=generator).tolist()
        return torch.multinomial(weights, n, replacement=True, generator=generator).tolist()


def feature_loader(
    dataset: FeatureDataset, *, batch_size: int, device: str | torch.device = "cpu"
) -> DataLoader[Any]:
    """Batches of features for the trainer; see `GlobalBatches`.

    Parameters
    ----------
    dataset : FeatureDataset
        Training slices.
    batch_size : int
        Slices a step, in all processes together.
    device : str or torch.device
        Where the training runs; a GPU holds all features if they fit.
    """
    return loader(dataset, device, batch_sampler=GlobalBatches(dataset, batch_size))
