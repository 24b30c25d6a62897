"""Feature batches for training on a GPU: all features lie there if they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mcmiad_monai.data.features import SliceRecord

#: Largest part of a GPU's free memory that features may take; the rest is for the training.
SHARE = 0.5
#: Slices that are copied at a time.
CHUNK = 512


class Features(Protocol):
    """A dataset of features, as `FeatureDataset` and `MixedFeatures` are."""

    records: list[SliceRecord]

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> dict[str, Any]: ...

    def kept(self, positions: Sequence[int]) -> Tensor:
        """Features of several slices as they are kept, (n, C, g, g) float16."""


class FeaturesOnDevice(Dataset[dict[str, Tensor]]):
    """A feature dataset whose batches lie on a GPU, in half precision as they are kept.

    An epoch then copies nothing from the host. Where the features are more than `SHARE` of the free
    memory, each batch is read from the host.

    Parameters
    ----------
    data : FeatureDataset or MixedFeatures
        Of one slice at least; left as it is.
    device : torch.device
    """

    def __init__(self, data: Features, device: torch.device) -> None:
        self.data, self.device = data, device
        self.labels = torch.tensor([int(r.anomalous) for r in data.records], device=device)
        self.features: Tensor | None = None
        one = data.kept([0])  # (1, C, g, g)
        if len(data) * one.nbytes <= SHARE * free_memory(device):
            self.features = one.new_empty(len(data), *one.shape[1:], device=device)
            for start in range(0, len(data), CHUNK):
                rows = range(start, min(start + CHUNK, len(data)))
                self.features[start : start + CHUNK] = data.kept(rows)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([position]).items()}

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """A whole batch, as PyTorch's loader asks for it."""
        where = torch.tensor(positions, device=self.device)
        if self.features is None:
            image = self.data.kept(positions).to(self.device)
        else:
            image = self.features.index_select(0, where)  # (n, C, g, g)
        return {"image": image, "label": self.labels.index_select(0, where)}


def loader(data: Features, device: str | torch.device, **options: Any) -> DataLoader[Any]:
    """A loader of feature batches, on the device if it is none of the host's.

    Parameters
    ----------
    data : FeatureDataset or MixedFeatures
    options
        Of PyTorch's loader: how batches are drawn.
    """
    where = torch.device(device)
    if on_host(where):
        return DataLoader(data, **options)  # type: ignore[arg-type]
    return DataLoader(FeaturesOnDevice(data, where), collate_fn=_whole, **options)


def on_host(device: torch.device) -> bool:
    """Whether batches stay where the features are read."""
    return device.type == "cpu"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _whole(batch: Any) -> Any:
    """What `__getitems__` gave, which is a batch already."""
    return batch
