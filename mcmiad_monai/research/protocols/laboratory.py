"""An experiment, and what all experiments share: sets, encoders, text priors and features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import batches, stack_images
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.encoder import FrozenEncoder, calibrate_batchnorm, untrained_norms
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.research.bmad.layout import Split
from mcmiad_monai.research.bmad.sets import ImageSet, Masks
from mcmiad_monai.research.protocols.scores import score_name
from mcmiad_monai.training.encoders import CALIBRATION_SLICES, calibration_slices
from mcmiad_monai.training.identity import RunIdentity, run_identity
from mcmiad_monai.training.method import Method

#: Options that experiments were already run without. The paper's values of these are left out of
#: what an experiment is found by, so that a finished one is found again.
LATER_OPTIONS = frozenset(
    (
        *("field_of_view", "context", "parts", "score", "coreset", "symmetry", "image_score"),
        *("layers", "merge", "copies", "patience"),
    )
)


def identity_of(method: Method) -> dict[str, Any]:
    """Options that tell a method from others; see `LATER_OPTIONS`."""
    before = Method().to_dict()
    return {
        name: value
        for name, value in method.to_dict().items()
        if name not in LATER_OPTIONS or value != before[name]
    }


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained, on what, with which seed.

    Attributes
    ----------
    name : str
        What it is called in the tables, e.g. ``"paper"`` or ``"no_fusion"``.
    sets : tuple of str
        Sets whose normal images are trained on together; each is measured on its own.
    method : Method
        Options of the method.
    seed : int
        Of initial weights, jitter, the order of images and the choice of shots.
    shots : int, optional
        Normal images of each set to train on; all by default.
    """

    name: str
    sets: tuple[str, ...]
    method: Method
    seed: int = 0
    shots: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            "name": self.name,
            "sets": list(self.sets),
            "method": self.method.to_dict(),
            "score": score_name(self.method),
            "seed": self.seed,
            "shots": self.shots,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other experiments, the same as in earlier versions."""
        return {**self.to_dict(), "method": identity_of(self.method)}

    @property
    def folder(self) -> str:
        """Name of its folder: readable, and different for different options."""
        content = {k: v for k, v in self.identity.items() if k != "name"}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
        shots = "" if self.shots is None else f"_{self.shots}shot"
        return f"{'+'.join(self.sets)}{shots}_seed{self.seed}_{digest}"


@dataclass(kw_only=True)
class Laboratory:
    """Sets, and everything that experiments share: encoders, text priors and cached features.

    Attributes
    ----------
    sets : mapping
        Of :func:`~mcmiad_monai.research.bmad.sets.find_bmad` or
        :func:`~mcmiad_monai.research.bmad.sets.own_set`.
    cache_dir : Path
        Features live here and are found again by the next run.
    size : int
        Pixels a side of the network's images.
    priors : dict
        Text priors by the name that a method has for them; those that are missing are built.
    """

    sets: Mapping[str, ImageSet]
    cache_dir: Path
    device: str | torch.device = "cpu"
    size: int = 224
    progress: bool = True
    _encoders: dict[str, FrozenEncoder] = field(default_factory=dict, repr=False)
    priors: dict[str, TextPrior] = field(default_factory=dict, repr=False)

    def encoder(self, method: Method) -> FrozenEncoder:
        """Encoder of a method; random weights get their statistics from images of all sets."""
        seen: dict[str, Any] = {}
        if "random" in method.weights:
            seen = {**method.image_options, "context": method.context}
        options = ("encoder_name", "weights", "pool", "align_corners", "layers", "merge")
        key = json.dumps([*(getattr(method, name) for name in options), seen])
        if key not in self._encoders:
            encoder = method.build_encoder()
            if untrained_norms(encoder):
                count = max(1, CALIBRATION_SLICES // len(self.sets))
                chosen = [
                    sample
                    for found in self.sets.values()
                    for sample in calibration_slices(
                        found.cases("train"),
                        found.modality,
                        size=self.size,
                        count=count,
                        transform=found.transform(**method.image_options),
                        context=method.context,
                    )
                ]
                images = [stack_images(group) for group in batches(chosen, 16)]
                calibrate_batchnorm(encoder, images)
            self._encoders[key] = encoder.to(self.device)
        return self._encoders[key]

    def prior(self, method: Method) -> TextPrior:
        """Text prior of a method; a stand-in where no head reads it."""
        if not method.trains_head:
            return method.build_prior(normal_prompts())
        if method.text_prior not in self.priors:
            self.priors[method.text_prior] = method.build_prior(normal_prompts())
        return self.priors[method.text_prior]

    def run_identity(
        self, method: Method, cases: Mapping[str, Sequence[Case]], seed: int
    ) -> RunIdentity:
        """What a checkpoint of a training on cases of sets must agree with."""
        return run_identity(
            method,
            encoder=self.encoder(method),
            prior=self.prior(method),
            seed=seed,
            training=[case for each in cases.values() for case in each],
            sets=list(cases),
            size=self.size,
        )

    @property
    def masks(self) -> Masks:
        """How masks are read; all sets are read alike."""
        readings = {found.masks for found in self.sets.values()}
        if len(readings) > 1:
            raise ValueError("the sets read masks differently; read all of them in one way.")
        return readings.pop()

    def features(
        self, name: str, split: Split, method: Method, cases: Sequence[Case] | None = None
    ) -> FeatureDataset:
        """Features of a split of a set, or of some of its cases."""
        found = self.sets[name]
        return FeatureDataset(
            found.cases(split) if cases is None else cases,
            self.encoder(method),
            modality=found.modality,
            transform=found.transform(**method.image_options),
            context=method.context,
            only_normal=split == "train",
            size=self.size,
            min_foreground=0.0,  # every image of a set counts, also a dark one
            cache="disk",
            cache_dir=self.cache_dir,
            device=self.device,
            progress=self.progress,
            description=f"{name} {split} features",
            copies=method.copies if split == "train" else 0,
        )

    @cached_property
    def data(self) -> dict[str, Any]:
        """Counts of every set, fit for JSON."""
        return {
            name: {
                "layout": found.layout,
                **{split: list(found.counts(split)) for split in ("train", "val", "test")},
            }
            for name, found in self.sets.items()
        }
