"""The learning rate over the steps of a training."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

#: The step schedule divides the rate by ten after this share of the training.
STEP_AT = 0.8


def learning_rate_schedule(
    optimizer: Optimizer, *, kind: Literal["cosine", "step"], total_steps: int
) -> LambdaLR:
    """Learning rate by optimiser step: cosine to zero, or divided by ten at 80 % (§4.2).

    PyTorch's own schedules keep their length in a checkpoint; this one takes that of the run, so
    that a training may be resumed for more epochs.

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
