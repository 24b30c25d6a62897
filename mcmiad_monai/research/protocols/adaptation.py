"""CLIP adapted before all experiments to the normal training images of the sets (§3.2)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.files.writing import write_text
from mcmiad_monai.networks.text_prior import TextPrior, open_clip_source
from mcmiad_monai.research.bmad.sets import ImageSet
from mcmiad_monai.research.clip_adaptation import adapt_text_prior
from mcmiad_monai.research.clip_projections import AdaptationError
from mcmiad_monai.research.prior_card import write_prior
from mcmiad_monai.research.prompts import flat, prompts_of
from mcmiad_monai.training.method import Method

logger = logging.getLogger(__name__)

#: The adapted prior, and the report of its adaptation beside it.
PRIOR = "text_prior_adapted.safetensors"


@dataclass(frozen=True)
class Adapted:
    """What became of the text prior before the experiments.

    Attributes
    ----------
    note : str
        What was done, or why nothing was, in one line.
    prior : TextPrior, optional
        The adapted prior; None where the method's own is used.
    """

    note: str
    prior: TextPrior | None = None

    def method(self, method: Method) -> Method:
        """The method with the adapted prior, whose name has its digest: another is another run."""
        if self.prior is None:
            return method
        digest = self.prior.provenance["embeddings_sha256"]
        return method.with_options(text_prior=f"{PRIOR} {digest[:10]}")


def adapt_first(
    sets: Mapping[str, ImageSet],
    method: Method,
    out: Path,
    *,
    wanted: bool = True,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Adapted:
    """Adapt CLIP to the training images of all sets, or read what an earlier run has made.

    Only CLIP is adapted, and only for a head: a method whose prior is hashing or a file keeps it.
    So does one whose sets are all of one modality, since an image is contrasted with the prompts of
    the others.

    Parameters
    ----------
    out : Path
        Folder of the prior's file and of its report.
    wanted : bool
        False for the ablation without adaptation.

    Raises
    ------
    WeightsError
        If CLIP's weights cannot be had.
    AdaptationError
        If there are too few patients to adapt to, or the prior that is there was adapted to other
        images, prompts or weights.
    """
    if not method.trains_head:
        return _none("no head is trained that reads it")
    cases: dict[str, list[Case]] = {}
    for found in sets.values():
        cases.setdefault(found.modality, []).extend(found.cases("train"))
    source = open_clip_source(method.text_prior)
    if source is None:
        kind = "is hashing" if method.text_prior == "hashing" else "is a file"
        return _none(f"the text prior {kind}; only CLIP is adapted")
    if not wanted:
        return _none("it was turned off (--no-adaptation)")
    if len(cases) < 2:
        return _none(f"all images are {next(iter(cases))}, and at least two modalities are needed")
    model, pretrained = source
    basis = _basis(model, pretrained, cases)
    path, report = out / PRIOR, (out / PRIOR).with_suffix(".json")
    if path.exists():
        _require_same_basis(report, basis)
        logger.info("the adapted text prior %s is used again", path)
    else:
        logger.info("CLIP is adapted to normal training images of %s", ", ".join(cases))
        try:
            made = adapt_text_prior(
                cases, model=model, pretrained=pretrained, device=device, progress=progress
            )
        except AdaptationError as error:
            raise AdaptationError(f"{error} --no-adaptation leaves CLIP as it is.") from error
        write_text(report, json.dumps({**made.report, "basis": basis}, indent=1))
        write_prior(made.prior, path)
    prior = TextPrior.load(path)
    note = f"text prior adapted (§3.2), {PRIOR}: {prior.encoder}"
    logger.info("%s", note)
    return Adapted(note, prior)


def _none(reason: str) -> Adapted:
    note = f"text prior not adapted: {reason}"
    logger.info("%s", note)
    return Adapted(note)


def _basis(model: str, pretrained: str, cases: Mapping[str, list[Case]]) -> dict[str, Any]:
    """What an adaptation depends on: weights, prompts and images by name."""
    names = sorted(f"{modality} {case['case']}" for modality in cases for case in cases[modality])
    weights = Path(pretrained)
    return {
        "model": model,
        "pretrained": file_sha256(weights) if weights.is_file() else pretrained,
        "prompts": list(flat(prompts_of())),
        "images": {modality: len(found) for modality, found in cases.items()},
        "images_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
    }


def _require_same_basis(report: Path, basis: Mapping[str, Any]) -> None:
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    then = found.get("basis", {})
    differing = {key: (then.get(key), basis[key]) for key in basis if then.get(key) != basis[key]}
    if differing:
        what = "; ".join(f"{key} was {a} and is {b}" for key, (a, b) in differing.items())
        raise AdaptationError(
            f"{report.with_suffix('.safetensors')} was adapted from something else: {what}. Give "
            "another output folder, or delete this file to adapt again."
        )
