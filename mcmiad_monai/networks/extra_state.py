"""What a model file holds beside its weights, as one tensor: PyTorch's own ``_extra_state``.

A tensor, so that the file is a plain state dict, as MONAI's bundle specification asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mcmiad_monai.networks.weights import WeightsError, tensors_sha256

EXTRA_STATE = "_extra_state"
"""PyTorch's key of it in a state dict."""

FORMAT = 2
"""Version of the layout; 1 was a dict of a state dict and JSON strings."""

BLOCK = 1 << 16
"""Its size in bytes is a multiple of this, by spaces at the end: `monai.networks.copy_model_state`
copies tensors of equal shape only."""


def encode(described: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Tensor:
    """JSON values, with the layout's version and a digest of the weights, as uint8 (n,)."""
    content = {**described, "format": FORMAT, "weights_sha256": tensors_sha256(weights)}
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % BLOCK)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def decode(state: Tensor) -> dict[str, Any]:
    """Read what `encode` wrote.

    Raises
    ------
    WeightsError
        If it is something else, or of a newer layout.
    """
    try:
        content: dict[str, Any] = json.loads(bytes(state.cpu().numpy()))
        layout = int(content["format"])
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise WeightsError(
            f"{EXTRA_STATE} is not that of a model of this project ({error}); use a model.pt that "
            "was written by training."
        ) from error
    if layout > FORMAT:
        raise WeightsError(
            f"the model has the layout {layout}, and this version reads up to {FORMAT}; update "
            "mcmiad-monai."
        )
    return content


def mismatch(state: Tensor, weights: Mapping[str, Tensor]) -> str | None:
    """What is wrong where `state` was written beside other weights; None where nothing is."""
    expected, found = decode(state)["weights_sha256"], tensors_sha256(weights)
    if found == expected:
        return None
    return (
        f"{EXTRA_STATE} belongs to the weights {expected[:12]}…, and these are "
        f"{found[:12]}…; the two do not belong together. Load both from one model.pt."
    )
