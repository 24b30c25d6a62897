"""The text prior (§3.2, A.2): embeddings of normal-anatomy prompts, computed once and stored."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mcmiad_monai.files.writing import replace_atomically
from mcmiad_monai.networks.weights import WeightsError, check_tensors, in_short, tensors_sha256

logger = logging.getLogger(__name__)

HASHING_FEATURES = 4096
"""Buckets of the hashed word n-grams before their projection."""


@dataclass(frozen=True)
class TextPrior:
    """Embedded prompts.

    Attributes
    ----------
    embeddings : Tensor of shape (P, D)
        One L2-normalised row for each prompt.
    prompts : tuple of str
        The P prompts.
    encoder : str
        What embedded them.
    weights : str
        Source and digest of its weights.
    """

    embeddings: Tensor
    prompts: tuple[str, ...]
    encoder: str
    weights: str

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.prompts) != len(self.embeddings):
            raise ValueError(
                f"{len(self.prompts)} prompts have embeddings of shape "
                f"{tuple(self.embeddings.shape)}; one row for each prompt is needed."
            )
        norms = self.embeddings.norm(dim=1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
            raise ValueError(
                f"prompt embeddings have norms from {norms.min():.3g} to {norms.max():.3g}; each "
                "row must be L2-normalised (§3.2)."
            )

    @property
    def provenance(self) -> dict[str, Any]:
        """Encoder, weights, prompts and a digest of the embeddings, fit for JSON."""
        return {
            "encoder": self.encoder,
            "weights": self.weights,
            "prompts": list(self.prompts),
            "embeddings_sha256": tensors_sha256({"embeddings": self.embeddings}),
        }

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        metadata = {
            "format": "mcmiad text prior 1",
            "encoder": self.encoder,
            "weights": self.weights,
            "prompts": json.dumps(self.prompts),
        }
        tensors = {"embeddings": self.embeddings.float().contiguous()}
        replace_atomically(path, lambda partial: save_file(tensors, partial, metadata))

    @classmethod
    def load(cls, path: str | Path) -> TextPrior:
        """Read a file that `save` wrote.

        Raises
        ------
        WeightsError
            If there is no such file, or it is not a text prior.
        """
        if not Path(path).is_file():
            raise WeightsError(
                f"there is no text prior {path}; make one with `mcmiad prompts encode`."
            )
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                embeddings = file.get_tensor("embeddings")
            check_tensors({"embeddings": embeddings}, Path(path))
            prompts = json.loads(metadata["prompts"])
            if not isinstance(prompts, list):
                raise ValueError(f"prompts are {type(prompts).__name__}, no list")
            _require_prompts(prompts)
            prior = cls(embeddings, tuple(prompts), metadata["encoder"], metadata["weights"])
        except WeightsError:
            raise
        except Exception as error:  # of any kind, in a damaged file
            raise WeightsError(
                f"{path} is not a text prior ({in_short(error)}): needed is a safetensors file "
                "with the tensor 'embeddings' and metadata for encoder, weights and prompts."
            ) from error
        return prior


def encode_open_clip(
    prompts: Sequence[str],
    *,
    model: str = "ViT-B-16",
    pretrained: str = "openai",
    sha256: str | None = None,
) -> TextPrior:
    """Embed prompts with CLIP's text tower (§3.2).

    Parameters
    ----------
    prompts : sequence of str
    model : str
        OpenCLIP's name of the model.
    pretrained : str
        A tag of OpenCLIP, or the path of a checkpoint.
    sha256 : str, optional
        Expected digest of the checkpoint.

    Raises
    ------
    WeightsError
        If the weights cannot be had.
    """
    from mcmiad_monai.networks.clip import describe_weights, load_clip

    _require_prompts(prompts)
    with torch.random.fork_rng(devices=[]):
        clip, source = load_clip(model, pretrained, sha256=sha256)
    weights = describe_weights(model, source)
    tokens = tokenize(model, prompts)  # (P, context length)
    with torch.no_grad():
        rows = F.normalize(clip.encode_text(tokens).float(), dim=1)  # type: ignore[operator]
    return TextPrior(rows, tuple(prompts), f"OpenCLIP {model} text tower", weights)


def tokenize(model: str, prompts: Sequence[str]) -> Tensor:
    """Tokens of prompts for an OpenCLIP model, (P, context length); logs prompts that are cut."""
    import open_clip

    tokenizer = open_clip.get_tokenizer(model)
    tokens: Tensor = tokenizer(list(prompts))
    length = tokens.shape[1]
    # with twice the length, tokens beyond the context are padding, or are cut
    beyond = tokenizer(list(prompts), context_length=2 * length)[:, length:]
    cut = (beyond != beyond[:, -1:]).any(dim=1)
    for prompt in [p for p, is_cut in zip(prompts, cut.tolist(), strict=True) if is_cut]:
        logger.warning("%s reads %d tokens; the end of %r is cut.", model, length, prompt)
    return tokens


def encode_hashing(prompts: Sequence[str], *, dim: int = 512, seed: int = 0) -> TextPrior:
    """Embed prompts by hashed words and word pairs; needs no weights and is not CLIP.

    Prompts with different words get different embeddings, which are not related to images.

    Parameters
    ----------
    prompts : sequence of str
    dim : int
        Size of an embedding.
    seed : int
        Seed of the Gaussian projection.
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.random_projection import GaussianRandomProjection

    _require_prompts(prompts)
    words = HashingVectorizer(n_features=HASHING_FEATURES, ngram_range=(1, 2))
    project = GaussianRandomProjection(dim, random_state=seed)
    projected = project.fit_transform(words.transform(prompts).toarray())  # (P, D), float64
    rows = F.normalize(torch.from_numpy(projected), dim=1).float()
    encoder = "hashing: word n-grams with a random projection; not CLIP, knows nothing of images"
    return TextPrior(rows, tuple(prompts), encoder, f"none: seeded projection, seed {seed}")


def resolve_text_prior(source: str, prompts: Sequence[str]) -> TextPrior:
    """Compute or read the prior that a configuration names.

    Parameters
    ----------
    source : str
        ``"hashing"``, ``"open_clip"``, ``"open_clip:MODEL/PRETRAINED"``, or the path of a file
        that `TextPrior.save` wrote, which brings its own prompts.
    prompts : sequence of str
        Prompts to embed.
    """
    if source == "hashing":
        return encode_hashing(prompts)
    clip = open_clip_source(source)
    if clip is not None:
        model, pretrained = clip
        return encode_open_clip(prompts, model=model, pretrained=pretrained)
    return TextPrior.load(source)


def open_clip_source(source: str) -> tuple[str, str] | None:
    """Model and weights of ``"open_clip[:MODEL/PRETRAINED]"``; None for another kind of prior."""
    kind, _, rest = source.partition(":")
    if kind != "open_clip":
        return None
    model, _, pretrained = rest.partition("/")
    return model or "ViT-B-16", pretrained or "openai"


def _require_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError(f"prompts are {prompts!r}; a list of sentences is needed.")
