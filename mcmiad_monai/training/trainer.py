"""MONAI engines of the project: training of the head, its validation, and the study evaluator.

The trainer sees cached features only; see ``data/features.py``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import sync_all_reduce
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.slices import SliceAUROC
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.runtime.precision import Precision, require_precision, warn_where_slow
from mcmiad_monai.training.distributed import rank, world_size
from mcmiad_monai.training.handlers import GradientClip, SeedEachEpoch
from mcmiad_monai.training.on_device import loader

logger = logging.getLogger(__name__)

#: The step schedule divides the rate by ten after this share of the training.
STEP_AT = 0.8


def learning_rate_schedule(
    optimizer: Optimizer, *, kind: Literal["cosine", "step"], total_steps: int
) -> LambdaLR:
    """Learning rate by optimiser step: cosine to zero, or divided by ten at 80 % (§4.2).

    Raises
    ------
    ValueError
        If the kind is not known.
    """
    if kind not in ("cosine", "step"):
        raise ValueError(f'learning-rate schedule {kind!r} is not known; use "cosine" or "step".')

    def factor(step: int) -> float:
        share = min(1.0, step / max(1, total_steps))
        if kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        return 1.0 if share < STEP_AT else 0.1

    return LambdaLR(optimizer, factor)


class HeadTrainer(SupervisedTrainer):
    """Train the reconstruction head on cached features, as §4.2 of the paper.

    MONAI's trainer with the clipping of gradients, a schedule that moves with every step and seeds
    that make a resumed run equal a straight one.

    Parameters
    ----------
    lr_scheduler : LambdaLR
        Stepped after every optimiser step.
    clip_norm : float
        Largest norm of all gradients together.
    seed : int
        Epoch ``e`` runs with the seed ``seed + e``.
    precision : {"float32", "bfloat16"}
        Of the products in the head. Weights, loss and optimiser stay in float32. MONAI's own
        ``amp`` is for CUDA alone.
    """

    def __init__(
        self,
        *,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: DataLoader[Any],
        network: torch.nn.Module,
        optimizer: Optimizer,
        loss_function: Callable[..., Tensor],
        lr_scheduler: LambdaLR,
        clip_norm: float = 0.1,
        seed: int = 0,
        inferer: Any = None,
        train_handlers: Sequence[Any] | None = None,
        precision: Precision = "float32",
        compile: bool = False,
    ) -> None:
        require_precision(precision)
        warn_where_slow(precision, torch.device(device))
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=loss_function,
            inferer=inferer if precision == "float32" else Autocast(inferer),
            train_handlers=[
                SeedEachEpoch(seed),
                GradientClip(clip_norm),
                *(train_handlers or []),
            ],
            decollate=False,  # the output is features and a reconstruction, not images
            optim_set_to_none=True,
            compile=compile,
        )
        self.lr_scheduler = lr_scheduler

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> Any:
        output: Any = super()._iteration(engine, batchdata)
        self.lr_scheduler.step()
        # a list of one, as MONAI's tracking handlers expect it; the reconstruction is let go
        return [{Keys.LOSS: output[Keys.LOSS].item()}]


class Autocast(Inferer):
    """Another inferer, or a plain call of the network, with products in bfloat16."""

    def __init__(self, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run the network."""
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return self.inferer(inputs, network, *args, **kwargs)


class HeadValidator(SupervisedEvaluator):
    """Validate the head on cached features; of several processes each takes its share.

    The key metric is the one that fits the data: ``val_slice_auroc`` where the validation slices
    hold anomalies, ``val_neg_loss`` (minus the reconstruction loss of normal slices, so that more
    is better) where only normals are at hand. Both are reported.

    Parameters
    ----------
    dataset : FeatureDataset
        Validation slices.
    network : Module
        On `device`.
    score : AnomalyScore
        Turns a reconstruction into slice scores.
    loss_function : callable
        The training loss.
    """

    def __init__(
        self,
        *,
        device: str | torch.device,
        dataset: FeatureDataset,
        network: torch.nn.Module,
        loss_function: Callable[..., Tensor],
        score: AnomalyScore,
        batch_size: int = 32,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        def loss_of_normals(output: dict[str, Any]) -> tuple[float, int]:
            normal = output[Keys.LABEL] == 0
            count = int(normal.sum())
            if count == 0:
                return 0.0, 0
            return float(loss_function(select(output[Keys.PRED], normal), None)), count

        def scores_and_labels(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
            pred = output[Keys.PRED]
            maps = score.score_map(pred.target, pred.reconstruction)  # (B, 1, g, g)
            return score.slice_score(maps), output[Keys.LABEL]

        if len(dataset) < world_size():
            raise ValueError(
                f"{len(dataset)} validation slices are shared by {world_size()} processes; give "
                "each at least one: more studies to validate on, or fewer processes."
            )
        loss = MeanOfSlices(output_transform=loss_of_normals)
        metrics: dict[str, Metric] = {"val_neg_loss": -1.0 * loss}
        key: dict[str, Metric] = metrics
        others: dict[str, Metric] = {}
        if dataset.has_anomalies and not all(r.anomalous for r in dataset.records):
            key, others = {"val_slice_auroc": SliceAUROC(scores_and_labels)}, metrics
        super().__init__(
            device=torch.device(device),
            val_data_loader=loader(
                dataset,
                device,
                batch_size=batch_size,
                sampler=range(rank(), len(dataset), world_size()),
            ),
            network=network,
            key_val_metric=key,
            additional_metrics=others,
            val_handlers=val_handlers,
            decollate=False,
        )


class MeanOfSlices(Metric):
    """Mean over slices, of batch means and the numbers of slices they are over.

    The same in one process and in several, however the slices are shared.
    """

    def reset(self) -> None:
        """Forget everything."""
        self._sum, self._count = 0.0, 0

    def update(self, output: tuple[float, int]) -> None:
        """Take the mean of a batch and its number of slices, which may be none."""
        mean, count = output
        self._sum += mean * count
        self._count += count

    @sync_all_reduce("_sum", "_count")
    def compute(self) -> float:
        """The mean as a number, so that MONAI can compare epochs; NaN of nothing."""
        return self._sum / self._count if self._count else math.nan


def select(pred: Any, rows: Tensor) -> Any:
    """Rows of a head output, which is a named tuple of batch tensors and a scalar."""
    return type(pred)(*(part[rows] if part.ndim else part for part in pred))
