"""CLIP's two projections into the space that images and texts share, apart from their towers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptationError(ValueError):
    """The images, the options or the model do not allow an adaptation."""


@dataclass(frozen=True)
class Embedded:
    """Images or prompts before their projection, (n, W), and indices of their modality, (n,)."""

    features: Tensor
    modality: Tensor

    def __len__(self) -> int:
        return len(self.features)


class Projections(nn.Module):
    """The two matrices into the shared space, and the scale of similarities, which is fixed.

    Parameters
    ----------
    image, text : Tensor of shape (W, D)
        The widths W are those of the towers.
    scale : float
        Inverse temperature.
    """

    def __init__(self, image: Tensor, text: Tensor, scale: float) -> None:
        super().__init__()
        self.image, self.text = nn.Parameter(image.clone()), nn.Parameter(text.clone())
        self.scale = scale

    def loss(self, images: Embedded, prompts: Embedded) -> Tensor:
        """Symmetric contrastive loss in which every prompt of an image's modality is right."""
        logits = self.scale * self._similarity(images, prompts)  # (n, P)
        right = images.modality[:, None] == prompts.modality[None]  # (n, P)
        there = right.any(0)  # prompts of modalities that the batch has
        return 0.5 * (_to_right(logits, right) + _to_right(logits.T[there], right.T[there]))

    def retrieval(self, images: Embedded, prompts: Embedded) -> float:
        """Share of images whose nearest prompt is of their modality, averaged over modalities."""
        nearest = prompts.modality[self._similarity(images, prompts).argmax(1)]
        hits = (nearest == images.modality).double()  # (n,)
        kinds = sorted(set(images.modality.tolist()))
        return float(torch.stack([hits[images.modality == kind].mean() for kind in kinds]).mean())

    def _similarity(self, images: Embedded, prompts: Embedded) -> Tensor:
        pictures = F.normalize(images.features @ self.image, dim=1)  # (n, D)
        sentences = F.normalize(prompts.features @ self.text, dim=1)  # (P, D)
        return pictures @ sentences.T  # (n, P)


def own_projections(clip: Any, model: str, *, temperature: float | None = None) -> Projections:
    """Copy a model's projections; its own temperature is kept unless another is given.

    Raises
    ------
    AdaptationError
        If a tower does not end in a matrix.
    """
    matrices = []
    for owner, name in _places(clip):
        value = getattr(owner, name, None)
        if isinstance(value, nn.Linear) and value.bias is None:
            value = value.weight.T
        if not isinstance(value, Tensor):
            raise AdaptationError(
                f"OpenCLIP's {model} has no matrix {name!r} in {type(owner).__name__}; models with "
                "a vision transformer and a text transformer, such as ViT-B-16, can be adapted."
            )
        matrices.append(value.detach().float())
    own = float(clip.logit_scale.exp().detach())
    image, text = matrices
    return Projections(image, text, own if temperature is None else 1 / temperature)


@contextmanager
def without_projections(clip: Any) -> Iterator[Any]:
    """CLIP whose towers end before their projections."""
    places = _places(clip)
    kept = [getattr(owner, name) for owner, name in places]
    try:
        for owner, name in places:
            setattr(owner, name, None)
        yield clip
    finally:
        for (owner, name), value in zip(places, kept, strict=True):
            setattr(owner, name, value)


def _places(clip: Any) -> list[tuple[Any, str]]:
    """Where the two projections are: owner and attribute."""
    text = getattr(clip, "text", clip)
    return [(clip.visual, "proj"), (text, "text_projection")]


def _to_right(logits: Tensor, right: Tensor) -> Tensor:
    """Mean of −log of the probability that falls on any of the right ones of each row."""
    chosen = logits.masked_fill(~right, -torch.inf).logsumexp(1)
    return (logits.logsumexp(1) - chosen).mean()
