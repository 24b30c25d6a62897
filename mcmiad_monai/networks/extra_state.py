"""What a model file holds beside its weights, as one tensor: PyTorch's own ``_extra_state``.

A tensor, so that the file is a plain state dict, as MONAI's bundle specification asks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mcmiad_monai.networks.weights import WeightsError, tensors_sha256

EXTRA_STATE = "_extra_state"
"""PyTorch's key of it in a state dict."""

FORMAT = 3
"""Version of the layout; 2 had no digest of the content, 1 was a dict of a state dict and JSON
strings."""

DIGEST = "content_sha256"
"""Key of the digest of everything else."""

BLOCK = 1 << 16
"""Its size in bytes is a multiple of this, by spaces at the end: `monai.networks.copy_model_state`
copies tensors of equal shape only."""


def encode(described: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Tensor:
    """JSON values with the layout's version and digests of them and of the weights, uint8 (n,)."""
    content = {**described, "format": FORMAT, "weights_sha256": tensors_sha256(weights)}
    content[DIGEST] = content_sha256(json.loads(json.dumps(content)))
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % BLOCK)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def decode(state: Tensor) -> dict[str, Any]:
    """Read what `encode` wrote.

    Raises
    ------
    WeightsError
        If it is something else, damaged, or of a newer layout.
    """
    try:
        content: dict[str, Any] = json.loads(bytes(state.cpu().numpy()))
        layout = int(content["format"])
    except (AttributeError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{EXTRA_STATE} is not that of a model of this project ({error}); use a model.pt that "
            "was written by training."
        ) from error
    if (DIGEST in content or layout == FORMAT) and content.get(DIGEST) != content_sha256(content):
        raise WeightsError(
            f"{EXTRA_STATE} is damaged: configuration, thresholds or provenance are not those "
            "that were written. Bring the model.pt again, or train again."
        )
    if layout > FORMAT:
        raise WeightsError(
            f"the model has the layout {layout}, and this version reads up to {FORMAT}; update "
            "mcmiad-monai."
        )
    return content


def content_sha256(content: Mapping[str, Any]) -> str:
    """Digest of all JSON values but the digest itself, however they are spaced and ordered."""
    others = {key: value for key, value in content.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def mismatch(state: Tensor, weights: Mapping[str, Tensor]) -> str | None:
    """What is wrong where `state` was written beside other weights; None where nothing is."""
    expected, found = decode(state).get("weights_sha256"), tensors_sha256(weights)
    if found == expected:
        return None
    if not isinstance(expected, str):
        return f"{EXTRA_STATE} does not say to which weights it belongs; bring the model.pt again."
    return (
        f"{EXTRA_STATE} belongs to the weights {expected[:12]}…, and these are "
        f"{found[:12]}…; the two do not belong together, or one is damaged. Load both from one "
        "model.pt, or bring it again."
    )
