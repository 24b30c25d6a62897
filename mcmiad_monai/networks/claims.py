"""What a model file says of its model, checked before memory is taken for it.

Whoever wrote the file chose the numbers, and a model is as large as they say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mcmiad_monai.modality import get_modality
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.extra_state import EXTRA_STATE
from mcmiad_monai.networks.head import MCMIADHead, head_from_config
from mcmiad_monai.networks.memory import NormalMemory, memory_from_config
from mcmiad_monai.networks.trunks import empty_tower

SMALL = 1024
"""A count up to this needs no tensor that shows it."""

MAX_GRID = 64
"""Most cells a side; slices of 224 pixels have 14, or 56 at a stride of 4."""

MAX_TOWER = 2_000_000_000
"""Most parameters of the OpenCLIP tower that a file describes: 8 GB."""

POSITIVE = ("heat_scale", "units", "std", "channel_std")
"""Last parts of the names of numbers that something is divided by."""


def head_of(config: Mapping[str, Any]) -> MCMIADHead | None:
    """The empty head that a configuration describes; None if it has none."""
    return None if config["head"] is None else head_from_config(config["head"])


def memories_of(config: Mapping[str, Any]) -> dict[str, NormalMemory]:
    """The empty memories that a configuration describes, by distance."""
    return {name: memory_from_config(c) for name, c in config.get("memories", {}).items()}


def check_sizes(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse a configuration of another size than its tensors; takes no memory for weights.

    Raises
    ------
    ValueError
        If a number is not finite or far above all sizes, or a part has other shapes.
    Exception
        Of other kinds, if values have other types than they should have.
    """
    weights = {name: tensor for name, tensor in state.items() if name != EXTRA_STATE}
    most = max(SMALL, len(weights), *(max(t.shape, default=0) for t in weights.values()))
    for where, number in _numbers(config):
        if not math.isfinite(number) or (type(number) is int and number > most):
            raise ValueError(f"{where} is {number}, and no tensor is as large as that")
    for encoder in _members(config["encoder"]):
        if not 1 <= encoder.get("grid", 1) <= MAX_GRID:
            raise ValueError(f"the grid is {encoder['grid']}; 1 to {MAX_GRID} cells are possible")
        _check_tower(encoder["trunk"].get("tower"))
    with torch.device("meta"):
        parts = {f"memories.{name}": memory for name, memory in memories_of(config).items()}
        if (head := head_of(config)) is not None:
            parts["head"] = head  # type: ignore[assignment]
    for prefix, part in parts.items():
        for name, expected in part.state_dict(prefix=f"{prefix}.").items():
            found = tuple(weights[name].shape) if name in weights else "missing"
            if found != tuple(expected.shape):
                raise ValueError(f"{name} is {found}, and by the configuration {expected.shape}")


def check_filled(detector: MCMIADDetector) -> None:
    """Refuse numbers and a provenance with which no study can be scored.

    Raises
    ------
    ValueError
        Naming what is wrong.
    Exception
        Of other kinds, if values have other types than they should have.
    """
    for name, tensor in detector.weights().items():
        if name.rpartition(".")[2] in POSITIVE and not bool((tensor > 0).all()):
            raise ValueError(f"{name} is not above 0")
    if not isinstance(detector.calibration, dict):
        raise ValueError(f"the calibration is {detector.calibration!r}")
    trained = detector.trained_with
    if (modality := trained.get("modality")) is not None:
        get_modality(modality)
    low, high = trained.get("slice_range", (0.0, 1.0))
    if not 0 <= low < high <= 1:
        raise ValueError(f"slice_range is {low}, {high}; 0 <= from < to <= 1 is needed")
    choices = {
        "region": (trained.get("region", "whole"), ("whole", "organ")),
        "context": (detector.context, (1, 3)),
        "field_of_view": (detector.image_options["field_of_view"], ("whole", "foreground")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {known}")


def _numbers(content: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of JSON values with their keys; counts of pixels have no tensor of their size."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key != "top_k":
                yield from _numbers(value, str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, where)
    elif isinstance(content, (int, float)):
        yield where, content


def _members(encoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Configurations of the encoders of an ensemble, or the one of another encoder."""
    if "members" in encoder:
        for member in encoder["members"]:
            yield from _members(member)
    else:
        yield encoder


def _check_tower(described: str | None) -> None:
    if not described:
        return
    config = json.loads(described)
    for where, number in _numbers(config):
        if not math.isfinite(number) or number > 1 << 16:
            raise ValueError(f"{where} of the OpenCLIP tower is {number}")
    with torch.device("meta"):
        count = sum(weight.numel() for weight in empty_tower(config).parameters())
    if count > MAX_TOWER:
        raise ValueError(f"the OpenCLIP tower has {count} parameters; {MAX_TOWER} are possible")
