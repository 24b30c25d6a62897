"""What the benchmark compares: inputs, sources of a map on the grid, and steps from there on.

A row of the table is one of each. Everything that we give our own maps, every other idea gets too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import GridMap, nearest_neighbour, position_gaussian
from real_sets import Case, Fold, RealSet
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import resolve_text_prior
from mcmiad_monai.training.fit import fit_head
from mcmiad_monai.training.method import Method, preset
from mcmiad_monai.transforms import preprocessing

#: Of the mirrored map, and of the Gaussian in pixels; 4 is what anomalib's models have themselves.
SYMMETRY, SMOOTH_SIGMA, PEER_SIGMA = 0.4, 6.0, 4.0
GROUPS = ("peers", "anomalib", "memory", "head")
#: Of other ideas, and whether their tokens have one length.
DISTANCES = {"L2": False, "cosine": True}


@dataclass(frozen=True)
class Inputs:
    """What the encoder sees."""

    name: str
    context: int = 1
    field_of_view: str = "whole"


INPUTS = {
    one.name: one
    for one in (
        Inputs("whole"),
        Inputs("crop", field_of_view="foreground"),
        Inputs("2.5-D", context=3),
        Inputs("crop 2.5-D", context=3, field_of_view="foreground"),
    )
}


@dataclass(frozen=True)
class Steps:
    """From a map on the grid to a heatmap."""

    symmetry: float = 0.0
    smooth_sigma: float = 0.0

    def place(self, maps: Tensor, inside: Tensor) -> Tensor:
        """Heatmaps (n, 1, S, S), 0 outside the foreground, of maps (n, 1, g, g)."""
        score = AnomalyScore(symmetry=self.symmetry, smooth_sigma=self.smooth_sigma)
        return score.place(maps, inside) * inside

    def __str__(self) -> str:
        parts = [f"− {self.symmetry} mirrored"] if self.symmetry else []
        parts += [f"σ = {self.smooth_sigma:g}"] if self.smooth_sigma else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Source:
    """A map on the grid: `fit` takes the features of a fold, part by part, and a seed.

    Attributes
    ----------
    drawn : bool
        Whether there is chance in it, so that it is fitted with every seed.
    ours : bool
        Whether it is one of the candidates from which a default is chosen.
    extra : tuple of Steps
        Steps of its own that the others do not have.
    """

    name: str
    fit: Callable[[Mapping[str, FeatureDataset], int], GridMap]
    drawn: bool = False
    ours: bool = False
    extra: tuple[Steps, ...] = ()


def steps_of(kind: RealSet, source: Source) -> list[Steps]:
    """Every way from the grid to a heatmap that a set has."""
    symmetries = (0.0, SYMMETRY) if kind.symmetric else (0.0,)
    common = [Steps(s, sigma) for s in symmetries for sigma in (0.0, SMOOTH_SIGMA)]
    return [*common, *source.extra]


def inputs_of(kind: RealSet, wanted: list[str]) -> list[Inputs]:
    """Those of the wanted inputs that a set has."""
    return [
        one
        for one in map(INPUTS.__getitem__, wanted)
        if (kind.volumes or one.context == 1) and (kind.bordered or one.field_of_view == "whole")
    ]


def method_of(options: argparse.Namespace, inputs: Inputs) -> Method:
    """Method that the options describe, on these inputs."""
    given = {
        "encoder_name": options.encoder,
        "weights": options.weights,
        "text_prior": options.text_prior,
        "max_epochs": options.epochs,
        "min_steps_per_epoch": 1,
        "context": inputs.context,
        "field_of_view": inputs.field_of_view,
    }
    return preset(options.preset, **{**given, **dict(options.overrides)})


def features_of(
    options: argparse.Namespace, kind: RealSet, inputs: Inputs, fold: Fold, encoder: FrozenEncoder
) -> dict[str, FeatureDataset]:
    """Training, validation and test features of a fold."""
    common: dict[str, Any] = {
        **slices_of(options, kind, inputs),
        "progress": False,
        **({"cache": "disk", "cache_dir": options.cache} if options.cache else {}),
    }

    def dataset(cases: list[Case], **more: Any) -> FeatureDataset:
        return FeatureDataset(cases, encoder, **common, **more)

    method = method_of(options, inputs)
    parts = {
        "train": dataset(fold.train, only_normal=True, copies=method.copies),
        "validation": dataset(fold.validation),
        "test": dataset(fold.test),
    }
    if method.patience is not None:  # the head's training ends by the normals of the validation
        parts["held out"] = dataset(fold.validation, only_normal=True)
    return parts


def slices_of(options: argparse.Namespace, kind: RealSet, inputs: Inputs) -> dict[str, Any]:
    """Options of the slices of a set, as datasets take them."""
    images = method_of(options, inputs).image_options
    return {
        "modality": kind.modality,
        "transform": preprocessing(kind.modality, mask_key="label", **images, **kind.options),
        "slice_range": kind.slice_range,
        "min_foreground": 0.0,
        "context": inputs.context,
    }


def sources_of(options: argparse.Namespace, inputs: Inputs) -> list[Source]:
    """Sources of the groups that were asked for."""
    found: list[Source] = []
    for group in options.groups:
        found += {
            "peers": peers,
            "anomalib": anomalib,
            "memory": lambda: [*memories(method_of(options, inputs).coreset), brightness()],
            "head": lambda: heads(options, inputs),
        }[group]()
    return found


def peers() -> list[Source]:
    """A nearest neighbour and a Gaussian at each position, in both distances."""
    ideas = {"nearest neighbour": nearest_neighbour, "Gaussian at each position": position_gaussian}
    return [
        Source(f"{idea}, {name}", lambda parts, _, fit=fit, c=cosine: fit(parts["train"], cosine=c))
        for idea, fit in ideas.items()
        for name, cosine in DISTANCES.items()
    ]


def anomalib() -> list[Source]:
    """PatchCore and PaDiM of anomalib, in both distances; their own smoothing is one more row."""
    from peers_anomalib import padim, patchcore

    ideas = {"anomalib PatchCore": patchcore, "anomalib PaDiM": padim}
    return [
        Source(
            f"{idea}, {name}",
            lambda parts, seed, fit=fit, c=cosine: fit(parts["train"], seed, cosine=c),
            drawn=True,
            extra=(Steps(0.0, PEER_SIGMA),),
        )
        for idea, fit in ideas.items()
        for name, cosine in DISTANCES.items()
    ]


def memories(size: int) -> list[Source]:
    """The memory of normal tokens, in both distances."""
    from mcmiad_monai.training.memory import build_memory

    def fit(data: FeatureDataset, seed: int, distance: str) -> GridMap:
        return build_memory(data, distance, size=size, seed=seed).memory.eval()

    return [
        Source(
            f"memory-{distance}",
            lambda parts, seed, d=distance: fit(parts["train"], seed, d),
            drawn=True,
            ours=True,
        )
        for distance in ("cosine", "l2")
    ]


def heads(options: argparse.Namespace, inputs: Inputs) -> list[Source]:
    """The trained head with S_cos, and with the score of its method where that is another."""
    method = method_of(options, inputs)
    scores = {"head": "cos"}
    if method.score_terms != "cos":
        scores[f"head, its own score ({method.score_terms})"] = method.score_terms

    def fit(parts: Mapping[str, FeatureDataset], seed: int, terms: str) -> GridMap:
        data = parts["train"]
        prior = resolve_text_prior(method.text_prior, normal_prompts())
        kept = checkpoints_of(options, method, data, seed)
        head, steps = fit_head(
            method, data, prior, seed=seed, validation=parts.get("held out"), checkpoints=kept
        )
        print(f"head, seed {seed}: {steps} steps", flush=True)
        return HeadMap(head, method.build_score(data.encoder, terms=terms))

    return [
        Source(name, lambda parts, seed, t=terms: fit(parts, seed, t), drawn=True, ours=True)
        for name, terms in scores.items()
    ]


@dataclass(frozen=True)
class HeadMap:
    """The map of a trained head."""

    head: MCMIADHead
    score: AnomalyScore

    def __call__(self, features: Tensor) -> Tensor:
        """Features (n, C, g, g) to (n, 1, g, g)."""
        output = self.head(features)
        return self.score.score_map(output.target, output.reconstruction)


def checkpoints_of(
    options: argparse.Namespace, method: Method, training: FeatureDataset, seed: int
) -> Path | None:
    """Folder of the checkpoints of this method, data and seed."""
    if options.checkpoints is None:
        return None
    slices = [(record.case, record.index) for record in training.records]
    what = [method.to_dict(), training.encoder.provenance, slices, seed]
    digest = hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()
    folder: Path = options.checkpoints / digest[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Mixed:
    """Maps of several sources, each over its unit, as one; the image's brightness may be one."""

    parts: dict[str, GridMap | None]
    units: dict[str, float]

    def __call__(self, features: Tensor, bright: Tensor) -> Tensor:
        """Features (n, C, g, g) and brightness (n, 1, h, w) to (n, 1, h, w)."""
        maps = {n: bright if m is None else m(features) for n, m in self.parts.items()}
        return AnomalyScore(sources=self.units).total(maps)


#: The image's brightness as a candidate; it has nothing to fit.
BRIGHTNESS = "intensity"


def brightness() -> Source:
    """Bright is anomalous, on cells of 4 × 4 pixels, as in a model's score."""
    alone = Mixed({BRIGHTNESS: None}, {BRIGHTNESS: 1.0})
    return Source(BRIGHTNESS, lambda *_: alone, ours=True)


@torch.inference_mode()
def grid_maps(maps: GridMap | Mixed, dataset: FeatureDataset) -> Tensor:
    """Maps of all slices of a dataset, (n, 1, g, g)."""
    found = []
    for chunk in torch.arange(len(dataset)).split(32):
        rows = chunk.tolist()
        asked = (dataset.batch(rows), dataset.intensity(rows))
        found.append(maps(*asked) if isinstance(maps, Mixed) else maps(asked[0]))
    return torch.cat(found).float()
