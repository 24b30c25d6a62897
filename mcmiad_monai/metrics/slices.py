"""Exact AUROC over slices or volumes: one score and one label of each are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced
from torch import Tensor

from mcmiad_monai.metrics.curves import auroc


def identity(output: Any) -> Any:
    """Pass the output of an engine on as it is."""
    return output


class SliceAUROC(Metric):
    """Exact AUROC of scores against 0/1 labels: ``update((scores (N,), labels (N,)))``."""

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
        """Add the scores and 0/1 labels of a batch.

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
        """AUROC over the scores of all processes; NaN if only one class is present.

        Raises
        ------
        NotComputableError
            If there was no update in any process.
        """
        # gathered first: a process without a batch of its own must not leave the others waiting
        parts = gather((self._scores, self._labels))
        scores, labels = ([batch for part in parts for batch in part[i]] for i in (0, 1))
        if not scores:
            raise NotComputableError("SliceAUROC needs at least one update before compute.")
        return auroc(torch.cat(scores).numpy(), torch.cat(labels).numpy())


def gather(value: Any) -> list[Any]:
    """A plain value of each process, in the order of their ranks."""
    import torch.distributed as dist

    if idist.get_world_size() == 1:
        return [value]
    parts: list[Any] = [None] * idist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts
