"""The key under which features are found again on disk."""

from __future__ import annotations

import hashlib
import json
import marshal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import pickle_hashing
from monai.transforms import Compose

from mcmiad_monai.data.studies import patient_of

#: What of the provenance of an encoder, or of a member of an ensemble, decides about its features.
ENCODER_KEYS = ("tensors_sha256", "pool", "align_corners", "layers", "merge")
#: Raised whenever the same input would give another content.
CACHE_FORMAT = 7


def cache_key(
    cases: Sequence[dict[str, Any]],
    transform: Callable[..., Any],
    options: Mapping[str, Any],
    encoder: Mapping[str, Any],
) -> str:
    """Digest over encoder weights, transforms, options, and path, size and time of every file.

    Parameters
    ----------
    encoder : mapping
        Its provenance.
    """
    content = {
        "format": CACHE_FORMAT,
        "encoder": [
            {key: member[key] for key in ENCODER_KEYS if key in member}
            for member in encoder.get("members", [encoder])
        ],
        "transform": describe_transform(transform),
        "options": dict(options),
        "cases": [
            [
                case["case"],
                *(file_stamp(case.get(key)) for key in ("image", "label", "organ")),
                case.get("anomalous"),
                case.get("modality"),
                patient_of(case),
            ]
            for case in cases
        ],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def file_stamp(path: str | None) -> list[Any]:
    """Path, size and time of a file; the path alone where there is none."""
    if path is None or not Path(path).exists():
        return [path]
    status = Path(path).stat()
    return [str(Path(path).resolve()), status.st_size, status.st_mtime_ns]


def describe_transform(transform: Callable[..., Any]) -> str:
    """Names and options of transforms, as JSON: equal for what does the same.

    MONAI's own hash is over a pickle, which also differs where one text is the same object twice,
    as a configuration and Python code make it.
    """
    steps = transform.flatten().transforms if isinstance(transform, Compose) else [transform]
    return json.dumps(list(steps), default=_described, sort_keys=True)


def _described(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.tolist()
    name = getattr(value, "__qualname__", None)
    if name is not None:  # a class, or a function, whose code may change under its name
        code = getattr(value, "__code__", None)
        return [value.__module__, name, "" if code is None else marshal.dumps(code).hex()]
    if hasattr(value, "__dict__"):
        return [f"{type(value).__module__}.{type(value).__qualname__}", vars(value)]
    return pickle_hashing(value).decode()
