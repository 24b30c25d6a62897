"""What a stress test measures: a packaged model in one modality, and the recipe of its studies."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.transforms import Compose
from torch import nn

from mcmiad_monai.calibration import Calibration, calibration_for
from mcmiad_monai.inference.inferer import SliceHeatmapInferer
from mcmiad_monai.modality import MODALITIES, Modality, get_modality
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.runtime.open import open_network
from mcmiad_monai.transforms import NormalizeCTd, NormalizeMRId, NormalizeOCTd, preprocessing

logger = logging.getLogger(__name__)


class Subject(NamedTuple):
    """A model, ready to be measured.

    Attributes
    ----------
    network : MCMIADDetector
        Of the package.
    runner : Module
        What computes it: the fastest engine there is for it.
    kind : Modality
        Of the studies; never the unified one.
    slice_range : (float, float)
        Share of the slices that are looked at.
    calibration : Calibration or None
        Of this modality.
    """

    network: MCMIADDetector
    runner: nn.Module
    kind: Modality
    slice_range: tuple[float, float]
    calibration: Calibration | None

    @property
    def engine(self) -> str:
        """Name and version of what computes."""
        return str(getattr(self.runner, "name", f"PyTorch {torch.__version__}"))

    def inferer(self, batch_size: int | None = None) -> SliceHeatmapInferer:
        """From volumes to heatmaps in the unit of the modality, as the bundle has it."""
        return SliceHeatmapInferer(
            axis=self.kind.slice_axis,
            slice_range=self.slice_range,
            batch_size=batch_size,
            calibration=self.network.calibration,
            score=self.network.score.slice_score,
        )


def open_subject(
    model: str | Path,
    cases: Iterable[dict[str, Any]],
    *,
    modality: str | None = None,
    device: str | torch.device = "cpu",
) -> Subject:
    """Open a package for a test in one modality.

    Parameters
    ----------
    model : path
        A ``model.pt``; an export ``model.onnx`` beside it is used as inference uses it.
    cases : iterable of dict
        May name the modality, under the key ``modality``.
    modality : str, optional
        Of the studies, for a unified model; without it, the only one that the cases name.
    device : str or torch.device

    Raises
    ------
    ValueError
        If the package does not tell for which modality it was trained or was trained for another,
        is unified and nothing tells which modality is meant, or has no thresholds for it.
    WeightsError
        If the model is no package.
    """
    network = load_package(model, device)
    kind = _modality(network, model, modality, cases)
    calibration = calibration_for(network.calibration, kind.name)
    low, high = network.provenance["training"].get("slice_range", (0.0, 1.0))
    exported = Path(model).with_suffix(".onnx")
    runner = open_network(network, engine="auto", path=exported, device=device)
    return Subject(network, runner, kind, (float(low), float(high)), calibration)


def cases_of(cases: Sequence[dict[str, Any]], kind: Modality) -> list[dict[str, Any]]:
    """Cases that are of a modality or do not tell, of which each must have a name of its own.

    Raises
    ------
    ValueError
        If there are none, or two have one name.
    """
    kept = [case for case in cases if case.get("modality") in (None, kind.name)]
    if len(kept) < len(cases):
        logger.info("%d cases of other modalities are left out", len(cases) - len(kept))
    counts = Counter(str(case["case"]) for case in kept)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if not kept or twice:
        raise ValueError(
            f"got {len(kept)} cases of {kind.name}, with the names {twice[:5]} more than once; at "
            "least one case and a name of its own for each are needed, as find_cases gives them."
        )
    return kept


def split_preprocessing(kind: Modality) -> tuple[Compose, Compose]:
    """The recipe of a modality in two: reading with orientation, and normalisation."""
    stages = list(preprocessing(kind, mask_key="label").transforms)
    normalisations = (NormalizeMRId, NormalizeCTd, NormalizeOCTd)
    cut = next(i for i, stage in enumerate(stages) if isinstance(stage, normalisations))
    return Compose(stages[:cut]), Compose(stages[cut:])


def _modality(
    network: MCMIADDetector,
    path: str | Path,
    modality: str | None,
    cases: Iterable[dict[str, Any]],
) -> Modality:
    training = network.provenance.get("training", {})
    if "modality" not in training:
        raise ValueError(
            f"{path} does not say for which modality it was trained; a model.pt that the training "
            "of a bundle has written is needed."
        )
    kind = get_modality(training["modality"])
    if not kind.is_unified:
        if modality not in (None, kind.name):
            raise ValueError(
                f"{path} was trained for {kind.name}, and the studies are said to be {modality}; "
                "give the model of that modality, or a unified one."
            )
        return kind
    named = {str(case["modality"]) for case in cases if case.get("modality")}
    told = named if modality is None else {modality}
    if len(told) != 1 or not told <= set(MODALITIES):
        raise ValueError(
            f"{path} is a unified model, and a test measures one modality at a time, while the "
            f"studies tell {sorted(told) or 'none'}. Name one of {sorted(MODALITIES)} (--modality)."
        )
    return get_modality(told.pop())
