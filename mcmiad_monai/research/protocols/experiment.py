"""One experiment: a head trained on normal images of one or several sets, and measured on each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import batches, stack_images
from mcmiad_monai.files import write_text
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import FrozenEncoder, calibrate_batchnorm, untrained_norms
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.networks.text_prior import TextPrior
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.bmad.layout import Split
from mcmiad_monai.research.bmad.sets import ImageSet, Masks
from mcmiad_monai.research.protocols.measure import measure
from mcmiad_monai.research.protocols.scores import score_name
from mcmiad_monai.research.protocols.shots import choose_shots
from mcmiad_monai.training.calibrating import calibrate
from mcmiad_monai.training.encoders import CALIBRATION_SLICES, calibration_slices
from mcmiad_monai.training.fit import fit_head
from mcmiad_monai.training.method import Method

#: Figures of an experiment by the masks they were made with; both are of one model.
RESULTS: dict[Masks, str] = {"any": "result.json", "white": "result_white_masks.json"}
MODEL = "model.pt"


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
    def folder(self) -> str:
        """Name of its folder: readable, and different for different options."""
        content = {k: v for k, v in self.to_dict().items() if k != "name"}
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
        """Text prior of a method."""
        if method.text_prior not in self.priors:
            self.priors[method.text_prior] = method.build_prior(normal_prompts())
        return self.priors[method.text_prior]

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


def run_experiment(plan: Experiment, lab: Laboratory, out: str | Path) -> dict[str, Any]:
    """Train and measure, or read what an earlier run has found.

    A finished experiment is never repeated; one that was stopped goes on after its last epoch. One
    that was measured with masks read otherwise is measured again, with the model that is there.

    Parameters
    ----------
    plan : Experiment
    lab : Laboratory
    out : path
        Its folder is made below; ``result.json`` (``result_white_masks.json`` where white alone is
        lesion) and ``model.pt`` end up in it.

    Returns
    -------
    dict
        ``results`` by set and score, ``supports``, ``data``, and all that produced them.

    Raises
    ------
    ValueError
        If the finished experiment was run on other images.
    """
    folder = Path(out) / plan.folder
    for masks in sorted(RESULTS, key=lambda reading: reading != lab.masks):
        if not (folder / RESULTS[masks]).exists():
            continue
        finished: dict[str, Any] = json.loads((folder / RESULTS[masks]).read_text("utf-8"))
        _require_same_data(finished["data"], {name: lab.data[name] for name in plan.sets}, folder)
        if masks != lab.masks:
            detector = load_package(folder / MODEL, lab.device)
            finished |= _measured(plan, lab, detector, bool(finished["calibration"]))
            write_text(folder / RESULTS[lab.masks], json.dumps(finished, indent=1))
        return finished
    supports = {
        name: lab.sets[name].cases("train")
        if plan.shots is None
        else choose_shots(lab.sets[name].cases("train"), plan.shots, plan.seed)
        for name in plan.sets
    }
    started = time.monotonic()
    data = FeatureDataset.join(
        {name: lab.features(name, "train", plan.method, supports[name]) for name in plan.sets}
    )
    detector, steps = train(plan, lab, data, folder)
    trained = time.monotonic()
    calibration = calibrate_on_normals(plan, lab, detector)
    report: dict[str, Any] = {
        "experiment": plan.to_dict(),
        **_measured(plan, lab, detector, bool(calibration)),
        "trained_on": {name: len(cases) for name, cases in supports.items()},
        "supports": None
        if plan.shots is None
        else {name: [case["case"] for case in cases] for name, cases in supports.items()},
        "calibration": calibration,
        "steps": steps,
        "seconds": {
            "training": round(trained - started, 1),
            "measuring": round(time.monotonic() - trained, 1),
        },
        "data": {name: lab.data[name] for name in plan.sets},
        "parameters": sum(p.numel() for p in detector.head.parameters() if p.requires_grad),
        "provenance": {
            "encoder": detector.encoder.provenance,
            "text_prior": lab.prior(plan.method).provenance,
            **produced_with(),
        },
    }
    modalities = {lab.sets[name].modality for name in plan.sets}
    training = {
        "experiment": plan.to_dict(),
        "method": plan.method.to_dict(),
        "modality": modalities.pop() if len(modalities) == 1 else None,
        "slice_range": [0.0, 1.0],
        "data": report["data"],
    }
    save_package(
        folder / MODEL,
        detector,
        calibration=calibration,
        provenance={**report["provenance"], "training": training},
    )
    write_text(folder / RESULTS[lab.masks], json.dumps(report, indent=1))
    (folder / "last.pt").unlink(missing_ok=True)
    return report


def train(
    plan: Experiment, lab: Laboratory, data: FeatureDataset, folder: Path
) -> tuple[MCMIADDetector, int]:
    """Train a head; the weights are those of the last epoch, as nothing is chosen on test images.

    Returns
    -------
    tuple
        The detector, and the number of optimiser steps.
    """
    method, encoder = plan.method, lab.encoder(plan.method)
    head, steps = fit_head(
        method,
        data,
        lab.prior(method),
        seed=plan.seed,
        device=lab.device,
        checkpoints=folder,
        fingerprint={
            "experiment": plan.to_dict(),
            "encoder": encoder.provenance["tensors_sha256"],
            "images": len(data),
        },
        progress=lab.progress,
    )
    score = method.build_score(encoder).to(lab.device)
    return MCMIADDetector(encoder, head, score).eval(), steps


def calibrate_on_normals(
    plan: Experiment, lab: Laboratory, detector: MCMIADDetector
) -> dict[str, Any]:
    """Thresholds from the normal images of the validation parts; none where there are no such."""
    parts = {}
    for name in plan.sets:
        cases = [case for case in lab.sets[name].cases("val") if not case["anomalous"]]
        if not cases:
            return {}
        parts[name] = lab.features(name, "val", plan.method, cases)
    return calibrate(detector, FeatureDataset.join(parts), device=lab.device).to_dict()


def _measured(
    plan: Experiment, lab: Laboratory, detector: MCMIADDetector, calibrated: bool
) -> dict[str, Any]:
    """Figures on the test images of each set, and how their masks were read."""
    results = {
        name: measure(
            detector,
            lab.features(name, "test", plan.method),
            lab.sets[name].cases("test"),
            plan.method,
            thresholds=calibrated,
            device=lab.device,
        )
        for name in plan.sets
    }
    return {"masks": lab.masks, "results": results}


def _require_same_data(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if then != now:
        raise ValueError(
            f"{folder} was run on {then}, and the sets now hold {now}. Give another output folder, "
            "or delete this one to run it again."
        )
