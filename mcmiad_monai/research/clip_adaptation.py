"""Light adaptation of the text prior to images of one's own (§3.2, §4.2).

Only CLIP's two projections into the shared space are trained, contrastively, on normal images and
the prompts of their modality. What lies before them is frozen, so every image and prompt runs
through its tower once, and training moves two matrices: seconds, also without a GPU.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mcmiad_monai.data.cases.find import split_cases
from mcmiad_monai.data.cases.names import CaseError
from mcmiad_monai.data.studies import SliceSample, batches, iterate_slices, stack_images
from mcmiad_monai.networks.clip import describe_weights, load_clip
from mcmiad_monai.networks.text_prior import TextPrior, tokenize
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.clip_projections import (
    AdaptationError,
    Embedded,
    Projections,
    own_projections,
    without_projections,
)
from mcmiad_monai.research.prompts import Prompts, checked_prompts, flat, prompts_of

logger = logging.getLogger(__name__)

Cases = Mapping[str, Sequence[dict[str, Any]]]
Failures = dict[str, dict[str, str]]  # messages by case, by modality: names of cases may recur
T = TypeVar("T")


@dataclass(frozen=True)
class Adaptation:
    """The new prior, and how it came about.

    Attributes
    ----------
    prior : TextPrior
        Embeddings of the prompts through the adapted projection.
    report : dict
        Counts, options, held-out loss and retrieval before and after; fit for JSON. The held-out
        slices choose the epoch, so the figures after it are a little better than on new patients.
    """

    prior: TextPrior
    report: dict[str, Any]


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
    temperature: float | None = None,
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
    temperature : float, optional
        Of the contrastive loss; the model's own by default.
    validation_fraction : float
        Share of each modality's patients held out; their loss ends the training.
    patience : int
        Epochs without a better held-out loss before it ends.
    max_slices : int
        Slices of each modality to train on, spread over the studies; a quarter as many are held
        out.
    seed : int
        Of the split and the order of images.

    Raises
    ------
    WeightsError
        If the weights cannot be had, do not fit, or are random.
    AdaptationError
        If an option is out of range, there are fewer than two modalities, one has no normal slice
        to train or to validate on, or the model's projections cannot be found.
    """
    sentences = prompts_of() if prompts is None else checked_prompts(prompts)
    names = _modalities(cases, sentences)
    options: dict[str, Any] = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "patience": patience,
        "seed": seed,
    }
    sampling = {"validation_fraction": validation_fraction, "max_slices": max_slices}
    _check_options({**options, **sampling, "temperature": temperature})
    with torch.random.fork_rng(devices=[]):
        clip, source = load_clip(model, pretrained, sha256=sha256)
        base = describe_weights(model, source)
        clip = clip.to(device)
        start = own_projections(clip, model, temperature=temperature)
        texts = embed_prompts(clip, model, sentences)
        failures: Failures = {}
        train, held_out = _images(
            clip,
            {name: cases[name] for name in names},
            list(sentences),
            fraction=validation_fraction,
            max_slices=max_slices,
            seed=seed,
            failures=failures,
            progress=progress,
        )
        fitted, history = _fit(start, train, held_out, texts, **options, progress=progress)
    report: dict[str, Any] = {
        "base": base,
        "model": model,
        "training_slices": _counts(train, sentences),
        "held_out_slices": _counts(held_out, sentences),
        "unreadable": failures,
        "before": _measured(start, held_out, texts),
        "after": _measured(fitted, held_out, texts),
        "best_epoch": history.index(min(history)),
        "held_out_loss_by_epoch": history,
        "options": {**options, **sampling, "temperature": 1 / start.scale},
        **produced_with(),
    }
    rows = F.normalize(texts.features @ fitted.text, dim=1).detach().cpu()
    encoder = f"OpenCLIP {model} text tower, projections {_outcome(report)}"
    prior = TextPrior(rows, flat(sentences), encoder, f"{base}; {_history(report)}")
    report["prior"] = prior.provenance
    logger.info("%s", _history(report))
    return Adaptation(prior, report)


@torch.no_grad()
def embed_prompts(clip: Any, model: str, prompts: Prompts) -> Embedded:
    """Prompts before the text projection."""
    tokens = tokenize(model, flat(prompts))  # (P, context length)
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


def _check_options(options: Mapping[str, Any]) -> None:
    rules: list[tuple[Callable[[Any], bool], str, tuple[str, ...]]] = [
        (lambda v: v >= 1, "at least 1", ("max_epochs", "batch_size", "patience", "max_slices")),
        (lambda v: 0 <= v < math.inf, "zero or positive", ("learning_rate", "weight_decay")),
        (lambda v: 0 < v < 1, "between 0 and 1", ("validation_fraction",)),
        (lambda v: v is None or v > 0, "positive", ("temperature",)),
    ]
    for allowed, needed, names in rules:
        for name in names:
            if not allowed(options[name]):
                raise AdaptationError(f"{name} is {options[name]}; it must be {needed}.")


@torch.no_grad()
def _measured(projections: Projections, images: Embedded, prompts: Embedded) -> dict[str, float]:
    return {
        "held_out_loss": float(projections.loss(images, prompts)),
        "held_out_retrieval": projections.retrieval(images, prompts),
    }


def _counts(images: Embedded, prompts: Prompts) -> dict[str, int]:
    """Images of each modality that has some."""
    counts = torch.bincount(images.modality.cpu(), minlength=len(prompts)).tolist()
    return {name: n for name, n in zip(prompts, counts, strict=True) if n}


def _outcome(report: Mapping[str, Any]) -> str:
    return "adapted" if report["best_epoch"] else "unchanged: no epoch lowered the held-out loss"


def _history(report: Mapping[str, Any]) -> str:
    """How the projections came about, in one line for the prior's file."""
    images = ", ".join(f"{name} {n}" for name, n in report["training_slices"].items())
    before, after = report["before"], report["after"]
    return (
        f"projections {_outcome(report)}; fitted to {sum(report['training_slices'].values())} "
        f"normal slices ({images}), best after epoch {report['best_epoch']} of "
        f"{len(report['held_out_loss_by_epoch']) - 1}, seed {report['options']['seed']}; "
        f"held-out loss {before['held_out_loss']:.4f} → {after['held_out_loss']:.4f}, retrieval "
        f"{before['held_out_retrieval']:.1%} → {after['held_out_retrieval']:.1%}"
    )


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


def _images(
    clip: Any,
    cases: Cases,
    order: Sequence[str],
    *,
    fraction: float,
    max_slices: int,
    seed: int,
    failures: Failures,
    progress: bool,
) -> list[Embedded]:
    """Slices to train on and held-out ones, before the projection."""
    found: list[list[Embedded]] = [[], []]
    for name in tqdm(cases, "images through CLIP", disable=not progress):
        for part, chosen in enumerate(_split(cases[name], name, fraction, seed)):
            limit = max_slices if part == 0 else max(1, max_slices // 4)
            unreadable: dict[str, str] = {}
            samples = _spread(chosen, name, limit, unreadable)
            if unreadable:
                failures.setdefault(name, {}).update(unreadable)
            if not samples:
                raise AdaptationError(
                    f"{name} has no normal slice {'to train on' if part == 0 else 'held out'} in "
                    f"{len(chosen)} studies ({len(unreadable)} unreadable"
                    f"{''.join('; ' + reason for reason in list(unreadable.values())[:2])}); give "
                    "more normal studies."
                )
            features = embed_images(clip, samples)
            modality = torch.full((len(features),), order.index(name), device=features.device)
            found[part].append(Embedded(features, modality))
    return [
        Embedded(torch.cat([p.features for p in parts]), torch.cat([p.modality for p in parts]))
        for parts in found
    ]


def _split(
    cases: Sequence[dict[str, Any]], modality: str, fraction: float, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        return split_cases(list(cases), fraction, seed=seed)
    except CaseError as error:
        raise AdaptationError(f"{modality}: {error}") from error


def _spread(
    cases: Sequence[dict[str, Any]], modality: str, count: int, failures: dict[str, str]
) -> list[SliceSample]:
    """At most ``count`` normal slices, evenly over the studies and over the slices of each."""
    each = -(-count // max(1, len(cases)))
    chosen: list[SliceSample] = []
    for case in _evenly(cases, count):
        found = iterate_slices([case], modality, only_normal=True, failures=failures)
        chosen += _evenly(list(found), each)
    return _evenly(chosen, count)


def _evenly(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items at even distances, in their order."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


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
            loss.backward()
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


def _device(clip: Any) -> torch.device:
    return next(iter(clip.parameters())).device
