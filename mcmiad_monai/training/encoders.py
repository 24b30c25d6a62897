"""The encoder that a training uses, with statistics of its images where its weights are random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist

from mcmiad_monai.data.features import TrainingDataError
from mcmiad_monai.data.studies import SliceSample, batches, iterate_slices, stack_images
from mcmiad_monai.networks.encoder import FrozenEncoder, calibrate_batchnorm, untrained_norms
from mcmiad_monai.training.method import Method

#: Slices on which random BatchNorm layers are calibrated.
CALIBRATION_SLICES = 64


def prepare_encoder(
    cases: Sequence[dict[str, Any]],
    *,
    modality: str,
    method: Method,
    seed: int = 0,
    sha256: str | None = None,
    size: int = 224,
    transform: Callable[..., Any] | None = None,
) -> FrozenEncoder:
    """Encoder ready for use: random weights also get their BatchNorm statistics from the cases.

    Parameters
    ----------
    cases : sequence of dict
        Training cases; read only for BatchNorms with random weights.
    method : Method
        Names the encoder and its weights.
    transform : callable, optional
        As of a `FeatureDataset`.

    Raises
    ------
    TrainingDataError
        If random weights are asked for and no case has a normal slice.
    """
    with idist.one_rank_first():  # a download is made once
        encoder = method.build_encoder(seed=seed, sha256=sha256)
    if untrained_norms(encoder):
        chosen = calibration_slices(
            cases, modality, size=size, transform=transform, context=method.context
        )
        calibrate_batchnorm(encoder, [stack_images(group) for group in batches(chosen, 16)])
    return encoder


def calibration_slices(
    cases: Sequence[dict[str, Any]],
    modality: str,
    *,
    size: int = 224,
    count: int = CALIBRATION_SLICES,
    transform: Callable[..., Any] | None = None,
    context: int = 1,
) -> list[SliceSample]:
    """Normal slices for BatchNorm statistics: a few of many studies, not many of a few.

    Raises
    ------
    TrainingDataError
        If no case has a normal slice.
    """
    per_case = max(1, count // max(1, len(cases)))
    chosen: list[SliceSample] = []
    for case in cases:
        slices = iterate_slices(
            [case], modality, size=size, only_normal=True, transform=transform, context=context
        )
        found = list(slices)
        chosen += found[:: max(1, len(found) // per_case)][:per_case]
        if len(chosen) >= count:
            break
    if not chosen:
        raise TrainingDataError(
            f"random weights need normal slices to set BatchNorm statistics; none was found "
            f"in {len(cases)} cases. Check the training data with `mcmiad cases`."
        )
    return chosen
