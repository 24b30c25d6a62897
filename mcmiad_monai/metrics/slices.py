"""Exact metrics over slices or volumes, which keep a score and a label of each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced
from torch import Tensor

from mcmiad_monai.metrics.curves import auroc, average_precision, f1_max


def identity(output: Any) -> Any:
    """Pass the output of an engine on as it is."""
    return output


class SliceMetric(Metric):
    """A statistic of scores against 0/1 labels: ``update((scores (N,), labels (N,)))``."""

    def __init__(
        self,
        output_transform: Callable[..., tuple[Tensor, Tensor]] = identity,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all scores."""
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Take the scores and 0/1 labels of a batch.

        Raises
        ------
        ValueError
            If there is not one label for each score.
        """
        scores, labels = output
        if scores.numel() != labels.numel():
            raise ValueError(
                f"found {scores.numel()} scores and {labels.numel()} labels; one label for each "
                "score is needed. Reduce heatmaps and masks to one value an image first."
            )
        self._scores.append(scores.detach().reshape(-1).cpu().double())
        self._labels.append(labels.detach().reshape(-1).cpu().bool())

    def compute(self) -> float:
        """Statistic over everything seen, in every process; NaN if one class is missing.

        Raises
        ------
        NotComputableError
            If there was no update in any process.
        """
        # gathered first: a process without a batch of its own must not leave the others waiting
        parts = gather((self._scores, self._labels))
        scores, labels = ([batch for part in parts for batch in part[i]] for i in (0, 1))
        if not scores:
            name = type(self).__name__
            raise NotComputableError(f"{name} needs at least one update before compute.")
        return self.statistic(torch.cat(scores).numpy(), torch.cat(labels).numpy())

    @abstractmethod
    def statistic(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """Statistic of scores (N,) and labels (N,) of bool."""


class SliceAUROC(SliceMetric):
    """Exact AUROC."""

    def statistic(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """Area under the ROC curve."""
        return auroc(scores, labels)


class SliceAP(SliceMetric):
    """Exact average precision."""

    def statistic(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """Area under the precision-recall curve, as scikit-learn defines it."""
        return average_precision(scores, labels)


class SliceF1Max(SliceMetric):
    """The best F1 of any threshold: an upper bound, since it looks at the labels."""

    def statistic(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """F1 at the threshold where it is best."""
        return f1_max(scores, labels).f1


def gather(value: Any) -> list[Any]:
    """A plain value of each process, in the order of their ranks."""
    import torch.distributed as dist

    if idist.get_world_size() == 1:
        return [value]
    parts: list[Any] = [None] * idist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts
