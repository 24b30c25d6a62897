"""What ``score: auto`` of the product chooses on a set, from synthetic anomalies on normals."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from peers import GridMap
from real_methods import Inputs, Steps, method_of, slices_of
from real_sets import RealSet

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.training.score_choice import candidates, choose_score
from mcmiad_monai.training.synthetic import synthetic_dataset


class Pick(NamedTuple):
    """A chosen row of some inputs, and the image score."""

    inputs: Inputs
    source: str
    steps: Steps
    image_score: str


def automatic(
    options: argparse.Namespace,
    kind: RealSet,
    inputs: Inputs,
    encoder: FrozenEncoder,
    fitted: Mapping[str, list[GridMap]],
) -> list[Pick]:
    """The choice of every fold without labels, from the normals of its validation part.

    `fitted` has our sources by name, fitted for each fold: both memories, and a head or none.
    """
    parts = "both" if "head" in fitted else "memory"
    open_ones: dict[str, Any] = dict.fromkeys(("symmetry", "smooth_sigma", "image_score"))
    method = method_of(options, inputs)
    method = method.with_options(parts=parts, score="auto", **open_ones)
    picks = []
    for number, fold in enumerate(kind.folds):
        memories = {d: fitted[f"memory-{d}"][number] for d in ("cosine", "l2")}
        head = fitted["head"][number].head if "head" in fitted else None  # type: ignore[attr-defined]
        score = method.build_score(encoder, terms="cos")
        detector = MCMIADDetector(encoder, head, score, memories)  # type: ignore[arg-type]
        normals = synthetic_dataset(fold.validation, encoder, **slices_of(options, kind, inputs))
        ways = candidates(method, kind.modality, by_labels=False)
        chosen = choose_score(detector, normals, ways).options
        steps = Steps(chosen["symmetry"], chosen["smooth_sigma"])
        picks.append(Pick(inputs, "+".join(chosen["sources"]), steps, chosen["image_score"]))
    return picks
