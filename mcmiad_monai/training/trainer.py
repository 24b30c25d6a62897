"""MONAI engines for the head: training and validation on cached features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.metrics import Loss, Metric
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.slices import SliceAUROC
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.runtime.precision import Precision, require_precision, warn_where_slow
from mcmiad_monai.training.handlers import Checkpoints, GradientClip, SeedEachEpoch

logger = logging.getLogger(__name__)


class HeadTrainer(SupervisedTrainer):
    """Train the reconstruction head on cached features, as §4.2 of the paper.

    MONAI's trainer with the clipping of gradients, checkpoints, and seeds that make a resumed run
    equal a straight one.

    Parameters
    ----------
    clip_norm : float
        Largest norm of all gradients together.
    seed : int
        Epoch ``e`` runs with the seed ``seed + e``.
    precision : {"float32", "bfloat16"}
        Of the products in the head. Weights, loss and optimiser stay in float32. MONAI's own
        ``amp`` is for CUDA alone.
    train_handlers : sequence, optional
        The schedule of the learning rate is one of them.
    checkpoints : Checkpoints, optional
        Attached after all other handlers, as they save what those have done.
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
        clip_norm: float = 0.1,
        seed: int = 0,
        inferer: Any = None,
        train_handlers: Sequence[Any] | None = None,
        checkpoints: Checkpoints | None = None,
        precision: Precision = "float32",
    ) -> None:
        require_precision(precision)
        warn_where_slow(precision, torch.device(device))
        handlers = [SeedEachEpoch(seed), GradientClip(clip_norm), *(train_handlers or [])]
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=loss_function,
            inferer=inferer if precision == "float32" else Autocast(inferer),
            train_handlers=handlers if checkpoints is None else [*handlers, checkpoints],
            decollate=False,  # the output is features and a reconstruction, not images
            optim_set_to_none=True,
        )

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> Any:
        output: Any = super()._iteration(engine, batchdata)
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
        def normals(output: dict[str, Any]) -> tuple[Any, Tensor]:
            rows = output[Keys.LABEL] == 0
            return select(output[Keys.PRED], rows), output[Keys.LABEL][rows]

        def loss_of_some(pred: Any, labels: Tensor) -> Tensor:
            # of a batch of anomalous slices alone the mean is NaN, and no weight of 0 removes that
            return loss_function(pred, None) if len(labels) else torch.zeros(())

        def scores_and_labels(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
            pred = output[Keys.PRED]
            maps = score.score_map(pred.target, pred.reconstruction)  # (B, 1, g, g)
            return score.slice_score(maps), output[Keys.LABEL]

        processes = idist.get_world_size()
        if len(dataset) < processes:
            raise ValueError(
                f"{len(dataset)} validation slices are shared by {processes} processes; give "
                "each at least one: more studies to validate on, or fewer processes."
            )
        if all(r.anomalous for r in dataset.records):
            raise ValueError(
                f"all {len(dataset)} validation slices are anomalous; the loss needs normal ones. "
                "Give normal validation studies, or another split seed."
            )
        loss = Loss(loss_of_some, output_transform=normals)
        metrics: dict[str, Metric] = {"val_neg_loss": -1.0 * loss}
        key: dict[str, Metric] = metrics
        others: dict[str, Metric] = {}
        if dataset.has_anomalies:
            key, others = {"val_slice_auroc": SliceAUROC(scores_and_labels)}, metrics
        super().__init__(
            device=torch.device(device),
            val_data_loader=DataLoader(
                dataset,
                batch_size=batch_size,
                sampler=range(idist.get_rank(), len(dataset), processes),
                pin_memory=torch.device(device).type == "cuda",
            ),
            network=network,
            key_val_metric=key,
            additional_metrics=others,
            val_handlers=val_handlers,
            decollate=False,
        )


def select(pred: Any, rows: Tensor) -> Any:
    """Rows of a head output, which is a named tuple of batch tensors and a scalar."""
    return type(pred)(*(part[rows] if part.ndim else part for part in pred))
