"""How studies of a cohort are looked at; small, so that a driver needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Keep = Literal["all", "anomalous", "none"]
#: Which studies keep their files.
KEEP: tuple[Keep, ...] = ("all", "anomalous", "none")


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How studies of a cohort are looked at.

    Attributes
    ----------
    keep : {"all", "anomalous", "none"}
        Which studies keep heatmap, mask and scores as files. ``"anomalous"`` also keeps those
        without a verdict and those with a warning.
    pictures : bool
        A study that was a picture comes back as pictures.
    device : str, optional
        See `load`.
    inference : mapping
        Options of `InferenceOptions`.
    """

    keep: Keep = "all"
    pictures: bool = True
    device: str | None = None
    inference: Mapping[str, Any] = field(default_factory=dict)
