"""Several feature datasets as one, and how training draws from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, WeightedRandomSampler

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.features import FeatureDataset, SliceRecord
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.training.on_device import loader


class MixedFeatures(Dataset[dict[str, Any]]):
    """Feature datasets of one encoder, one after the other, read as one of them is.

    Parameters
    ----------
    parts : sequence of FeatureDataset
        At least one.
    """

    def __init__(self, parts: Sequence[FeatureDataset]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.encoder, self.size = parts[0].encoder, parts[0].size
        self.records: list[SliceRecord] = [r for part in parts for r in part.records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict[str, Any]:
        part, row = self._place(position)
        return part[row]

    def kept(self, positions: Sequence[int]) -> Tensor:
        """Features of several slices as they are kept, (n, C, g, g) float16."""
        return self._collect("kept", positions)

    def batch(self, positions: Sequence[int]) -> Tensor:
        """Features of several slices at once, (n, C, g, g) float32."""
        return self._collect("batch", positions)

    def foreground(self, positions: Sequence[int]) -> Tensor:
        """Foreground of slices on the network grid, (n, 1, size, size) bool."""
        return self._collect("foreground", positions)

    def lesion(self, positions: Sequence[int]) -> Tensor:
        """Lesion masks of slices on the network grid, (n, 1, size, size) bool."""
        return self._collect("lesion", positions)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Channel mean and standard deviation (C,), in which every part has the same weight."""
        each = [part.statistics() for part in self.parts]
        means = torch.stack([mean for mean, _ in each])  # (parts, C)
        variances = torch.stack([std.square() for _, std in each])
        mean = means.mean(0)
        return mean, (variances + (means - mean).square()).mean(0).sqrt()

    def weights(self) -> Tensor:
        """Probability of each slice (n,) under which every part is drawn alike."""
        return torch.cat([torch.full((len(p),), 1 / len(p)) for p in self.parts]).double()

    def _place(self, position: int) -> tuple[FeatureDataset, int]:
        index = int(np.searchsorted(self.ends, position, side="right"))
        return self.parts[index], position - (int(self.ends[index - 1]) if index else 0)

    def _collect(self, what: str, positions: Sequence[int]) -> Tensor:
        rows = [self._place(position) for position in positions]
        return torch.cat([getattr(part, what)([row]) for part, row in rows])


def training_loader(
    data: MixedFeatures, *, batch_size: int, min_steps: int, device: str | torch.device = "cpu"
) -> DataLoader[Any]:
    """Batches of an epoch: every slice once, unless the data asks for more.

    Several datasets are drawn from with replacement and with equal shares, so that a large one does
    not drown a small one; so is a dataset of too few slices for ``min_steps`` full batches. The
    global generator decides, which the trainer seeds for each epoch.
    """
    few = len(data) < min_steps * batch_size
    total = max(len(data), min_steps * batch_size)
    if len(data.parts) > 1:
        sampler: Any = WeightedRandomSampler(data.weights().tolist(), total, replacement=True)
    else:
        sampler = RandomSampler(data, replacement=few, num_samples=total if few else None)
    return loader(data, device, batch_size=batch_size, sampler=sampler)


def choose_shots(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Draw ``count`` normal images, of different patients as long as there are such.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    normal = [case for case in cases if not case.get("anomalous")]
    if count < 1 or len(normal) < count:
        raise ValueError(f"{count} normal images were asked for; there are {len(normal)}.")
    drawn = [normal[i] for i in np.random.default_rng(seed).permutation(len(normal))]
    seen: set[str] = set()
    fresh: list[Case] = []
    again: list[Case] = []
    for case in drawn:
        (again if patient_of(case) in seen else fresh).append(case)
        seen.add(patient_of(case))
    return (fresh + again)[:count]
