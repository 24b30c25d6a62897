"""Light adaptation of the text prior to images of one's own (§3.2, §4.2).

Only CLIP's two projections into the shared space are trained, contrastively, on normal images and
the prompts of their modality. What lies before them is frozen, so every image and prompt runs
through its tower once, and training moves two matrices: seconds, also without a GPU.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mcmiad_monai.data.studies import SliceSample, batches, iterate_slices, stack_images
from mcmiad_monai.data.volumes import split_cases
from mcmiad_monai.networks.clip import load_clip
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.prompts import Prompts, flat, prompts_of
from mcmiad_monai.provenance import produced_with

logger = logging.getLogger(__name__)

Cases = Mapping[str, Sequence[dict[str, Any]]]


class AdaptationError(ValueError):
    """The images or the model do not allow an adaptation."""


@dataclass(frozen=True)
class Adaptation:
    """The new prior, and how it came about.

    Attributes
    ----------
    prior : TextPrior
        Embeddings of the prompts through the adapted projection.
    report : dict
        Counts, options, held-out loss and retrieval before and after; fit for JSON.
    """

    prior: TextPrior
    report: dict[str, Any]


@dataclass(frozen=True)
class Embedded:
    """Pictures before the projection, (n, W), and the index of their modality, (n,)."""

    features: Tensor
    modality: Tensor

    def __len__(self) -> int:
        return len(self.features)


class Projections(nn.Module):
    """The two matrices into the shared space, and the temperature, which stays as it is."""

    def __init__(self, image: Tensor, text: Tensor, scale: float) -> None:
        super().__init__()
        self.image, self.text = nn.Parameter(image.clone()), nn.Parameter(text.clone())
        self.scale = scale

    def loss(self, images: Embedded, prompts: Embedded) -> Tensor:
        """Symmetric contrastive loss in which every prompt of an image's modality is right."""
        pictures = F.normalize(images.features @ self.image, dim=1)  # (n, D)
        sentences = F.normalize(prompts.features @ self.text, dim=1)  # (P, D)
        logits = self.scale * pictures @ sentences.T  # (n, P)
        right = images.modality[:, None] == prompts.modality[None]  # (n, P)
        there = right.any(0)  # prompts of modalities that the batch has
        return 0.5 * (_to_right(logits, right) + _to_right(logits.T[there], right.T[there]))

    def retrieval(self, images: Embedded, prompts: Embedded) -> float:
        """Share of images whose nearest prompt is one of their modality."""
        pictures = F.normalize(images.features @ self.image, dim=1)
        sentences = F.normalize(prompts.features @ self.text, dim=1)
        nearest = prompts.modality[(pictures @ sentences.T).argmax(1)]
        return float((nearest == images.modality).double().mean())


def adapt_text_prior(
    cases: Cases,
    *,
    model: str = "ViT-B-16",
    pretrained: str = "openai",
    sha256: str | None = None,
    prompts: Prompts | None = None,
    max_epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    weight_decay: float = 1e-4,
    validation_fraction: float = 0.2,
    patience: int = 3,
    max_slices: int = 500,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Adaptation:
    """Fit CLIP's projections to normal images, and embed the prompts anew.

    Parameters
    ----------
    cases : mapping
        Normal studies or images by modality; at least two modalities, since an image is contrasted
        with the prompts of the others.
    model, pretrained, sha256
        See :func:`~mcmiad_monai.networks.clip.load_clip`.
    prompts : dict, optional
        Prompts by modality; the paper's by default.
    validation_fraction : float
        Share of each modality's patients held out; their loss ends the training.
    patience : int
        Epochs without a better held-out loss before it ends.
    max_slices : int
        Slices of each modality that are used, spread over the studies.
    seed : int
        Of the split and the order of images.

    Raises
    ------
    AdaptationError
        If there are fewer than two modalities, one has no normal slice to train or to validate on,
        or the model's projections cannot be found.
    """
    sentences = prompts_of() if prompts is None else prompts
    names = _modalities(cases, sentences)
    with torch.random.fork_rng(devices=[]):
        clip, source = load_clip(model, pretrained, sha256=sha256)
        torch.manual_seed(seed)
        clip = clip.to(device)
        start = _projections(clip, model)
        texts = embed_prompts(clip, model, {name: sentences[name] for name in sentences})
        order = list(sentences)
        train, held_out = _images(
            clip,
            {name: cases[name] for name in names},
            order,
            fraction=validation_fraction,
            max_slices=max_slices,
            seed=seed,
            progress=progress,
        )
        fitted, history = _fit(
            start,
            train,
            held_out,
            texts,
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            patience=patience,
            seed=seed,
            progress=progress,
        )
    with torch.no_grad():
        rows = F.normalize(texts.features @ fitted.text, dim=1).cpu()
        before, after = (
            {
                "held_out_loss": float(p.loss(held_out, texts)),
                "held_out_retrieval": p.retrieval(held_out, texts),
            }
            for p in (start, fitted)
        )
    counts = {name: int((train.modality == order.index(name)).sum()) for name in names}
    base = f"{source.get('weights')}, {source.get('file')}, sha256 {source.get('file_sha256')}"
    prior = TextPrior(
        rows,
        flat(sentences),
        f"OpenCLIP {model} text tower, projections adapted",
        f"{base}; projections fitted to {sum(counts.values())} normal slices, seed {seed}",
    )
    report = {
        "base": base,
        "model": model,
        "training_slices": counts,
        "held_out_slices": len(held_out),
        "before": before,
        "after": after,
        "held_out_loss_by_epoch": history,
        "options": {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "patience": patience,
            "seed": seed,
        },
        "prior": prior.provenance,
        **produced_with(),
    }
    logger.info("held-out loss %.4f → %.4f", before["held_out_loss"], after["held_out_loss"])
    return Adaptation(prior, report)


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


@torch.no_grad()
def embed_prompts(clip: Any, model: str, prompts: Prompts) -> Embedded:
    """Prompts before the text projection."""
    import open_clip

    tokens = open_clip.get_tokenizer(model)(list(flat(prompts)))  # (P, context length)
    with without_projections(clip) as tower:
        features = tower.encode_text(tokens.to(_device(clip))).float()
    sizes = torch.tensor([len(lines) for lines in prompts.values()])
    return Embedded(features, torch.arange(len(sizes)).repeat_interleave(sizes).to(features.device))


@torch.no_grad()
def embed_images(clip: Any, samples: Sequence[SliceSample], batch_size: int = 16) -> Tensor:
    """Slices before the image projection, (n, W)."""
    import open_clip

    config = open_clip.get_model_preprocess_cfg(clip)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    size = config["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    found = []
    with without_projections(clip) as tower:
        for group in batches(samples, batch_size):
            grey = stack_images(group)  # (B, 1, S, S)
            fitted = F.interpolate(grey, size, mode="bicubic", antialias=True).clamp(0, 1)
            rgb = (fitted.expand(-1, 3, -1, -1) - mean) / std
            found.append(tower.encode_image(rgb.to(_device(clip))).float())
    return torch.cat(found)


def _modalities(cases: Cases, prompts: Prompts) -> list[str]:
    """Modalities that are adapted to, in the order of the prompts."""
    unknown = sorted(set(cases) - set(prompts))
    if unknown:
        raise AdaptationError(
            f"there are images of {unknown} but no prompts for them; prompts are there for "
            f"{sorted(prompts)}."
        )
    names = [name for name in prompts if cases.get(name)]
    if len(names) < 2:
        raise AdaptationError(
            f"images of {names or 'no modality'} were given; at least two modalities are needed, "
            "since an image is contrasted with the prompts of the others. With one, use the prior "
            "as it is (`mcmiad prompts encode`)."
        )
    return names


def _places(clip: Any) -> list[tuple[Any, str]]:
    """Where the two projections are: owner and attribute."""
    text = getattr(clip, "text", clip)
    return [(clip.visual, "proj"), (text, "text_projection")]


def _projections(clip: Any, model: str) -> Projections:
    """The model's own projections as two matrices (W, D)."""
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
    return Projections(*matrices, float(clip.logit_scale.exp().detach()))


def _images(
    clip: Any,
    cases: Cases,
    order: Sequence[str],
    *,
    fraction: float,
    max_slices: int,
    seed: int,
    progress: bool,
) -> tuple[Embedded, Embedded]:
    """Slices to train on and held-out ones, before the projection."""
    found: list[list[tuple[Tensor, int]]] = [[], []]
    for name in tqdm(cases, "images through CLIP", disable=not progress):
        for part, chosen in enumerate(split_cases(list(cases[name]), fraction, seed=seed)):
            samples = _spread(chosen, name, max_slices if part == 0 else max(1, max_slices // 4))
            if not samples:
                raise AdaptationError(
                    f"{name} has no normal slice {'to train on' if part == 0 else 'held out'} in "
                    f"{len(chosen)} studies; give more normal studies."
                )
            found[part].append((embed_images(clip, samples), order.index(name)))
    train, held_out = (
        Embedded(
            torch.cat([features for features, _ in parts]),
            torch.cat([torch.full((len(f),), k, device=f.device) for f, k in parts]),
        )
        for parts in found
    )
    return train, held_out


def _spread(cases: Sequence[dict[str, Any]], modality: str, count: int) -> list[SliceSample]:
    """At most ``count`` normal slices, as many from each study as can be."""
    each = max(1, count // max(1, len(cases)))
    chosen: list[SliceSample] = []
    for case in cases:
        slices = list(iterate_slices([case], modality, only_normal=True))
        chosen += slices[:: max(1, len(slices) // each)][:each]
        if len(chosen) >= count:
            break
    return chosen[:count]


def _fit(
    start: Projections,
    train: Embedded,
    held_out: Embedded,
    texts: Embedded,
    *,
    max_epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    patience: int,
    seed: int,
    progress: bool,
) -> tuple[Projections, list[float]]:
    """Train until the held-out loss no longer falls; the best weights and the losses, 0th first."""
    current = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(current.parameters(), lr=learning_rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(train.modality.cpu())
    weights = (1.0 / counts.clamp_min(1))[train.modality.cpu()].double()
    with torch.no_grad():
        history = [float(start.loss(held_out, texts))]
    best, best_epoch = copy.deepcopy(current.state_dict()), 0
    bar = tqdm(range(1, max_epochs + 1), "adaptation", unit=" epochs", disable=not progress)
    for epoch in bar:
        # every modality has the same share of a batch, whatever the number of its images
        drawn = torch.multinomial(weights, len(train), replacement=True, generator=generator)
        for rows in drawn.to(train.features.device).split(batch_size):
            optimizer.zero_grad()
            part = Embedded(train.features[rows], train.modality[rows])
            loss = current.loss(part, texts)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            history.append(float(current.loss(held_out, texts)))
        bar.set_postfix(held_out=f"{history[-1]:.4f}")
        if history[-1] < history[best_epoch]:
            best, best_epoch = copy.deepcopy(current.state_dict()), epoch
        elif epoch - best_epoch >= patience:
            break
    current.load_state_dict(best)
    return current, history


def _to_right(logits: Tensor, right: Tensor) -> Tensor:
    """Mean of −log of the probability that falls on any of the right ones of each row."""
    chosen = logits.masked_fill(~right, -torch.inf).logsumexp(1)
    return (logits.logsumexp(1) - chosen).mean()


def _device(clip: Any) -> torch.device:
    return next(iter(clip.parameters())).device
