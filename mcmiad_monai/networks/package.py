"""The model file: one state dict with encoder, text prior, head, memory, score and calibration.

Loading it needs no weight hub, no text encoder and no network connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcmiad_monai.files.writing import save_torch
from mcmiad_monai.networks.claims import check_filled, check_sizes, head_of, memories_of
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import encoder_from_config
from mcmiad_monai.networks.extra_state import EXTRA_STATE, decode, encode, mismatch
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.weights import (
    WeightsError,
    check_tensors,
    in_short,
    load_checkpoint,
)

FORMAT_1 = frozenset({"model", "config", "provenance", "calibration", "format"})
"""Keys of the first layout: a state dict, three JSON strings and the version."""


def save_package(
    path: str | Path,
    detector: MCMIADDetector,
    *,
    calibration: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a detector to a file, usually ``models/model.pt``, whole or not at all.

    Parameters
    ----------
    path : path
    detector : MCMIADDetector
    calibration : dict, optional
        Instead of the detector's own; fit for JSON.
    provenance : dict, optional
        Added to the detector's own; fit for JSON.
    """
    described = detector.description
    described["provenance"] = {**described["provenance"], **(provenance or {})}
    if calibration is not None:
        described["calibration"] = calibration
    weights = {name: tensor.detach().cpu() for name, tensor in detector.weights().items()}
    save_torch({**weights, EXTRA_STATE: encode(described, weights)}, path)


def load_package(
    path: str | Path,
    map_location: str | torch.device = "cpu",
    *,
    modality: str | None = None,
) -> MCMIADDetector:
    """Read a model file into a detector in evaluation mode.

    Parameters
    ----------
    path : path
        Usually ``models/model.pt``.
    map_location : str or torch.device
        Where to put the detector.
    modality : str, optional
        What the model must have been trained for.

    Raises
    ------
    WeightsError
        If the file is missing or damaged, is not a model of this project, has a newer layout, was
        put together from two models, or is for another modality.
    """
    state = _read(Path(path))
    try:
        described = decode(state[EXTRA_STATE])
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    try:
        config = described["config"]
        check_sizes(config, state)
        detector = MCMIADDetector(
            encoder_from_config(config["encoder"]),
            head_of(config),
            AnomalyScore(**config["score"]),
            memories_of(config),
        )
        detector.load_state_dict(state)
        check_filled(detector)
    except Exception as error:  # of any kind, where values have other types than expected
        weights = {name: tensor for name, tensor in state.items() if name != EXTRA_STATE}
        if problem := mismatch(state[EXTRA_STATE], weights):
            raise WeightsError(f"{path}: {problem}") from error
        raise WeightsError(
            f"the weights in {path} do not fit the model that it describes, or it describes none "
            f"({in_short(error)}). It may have been written with another version of timm or "
            "OpenCLIP: see its provenance. Otherwise bring it again, or train again."
        ) from error
    trained_for = detector.trained_with.get("modality")
    if modality is not None and trained_for not in (None, modality):
        raise WeightsError(
            f"{path} was trained for {trained_for}, and the images are {modality}; use the bundle "
            "of that modality, or train one."
        )
    return detector.to(map_location).eval()


def _read(path: Path) -> dict[str, Tensor]:
    """State dict of a model file, of the first layout too."""
    if not path.is_file():
        raise WeightsError(
            f"there is no packaged model {path}; train one, or bring the model.pt of a bundle."
        )
    try:
        content = load_checkpoint(path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path} is not a packaged model: {in_short(error)}") from error
    if isinstance(content, dict) and EXTRA_STATE in content:
        _check_plain(content, path)
        return content
    if isinstance(content, dict) and set(content) >= FORMAT_1:
        try:
            described = {
                key: json.loads(content[key]) for key in ("config", "provenance", "calibration")
            }
            _check_plain(content["model"], path)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{path} is damaged: {in_short(error)}; bring it again.") from error
        return {**content["model"], EXTRA_STATE: encode(described, content["model"])}
    found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content)
    raise WeightsError(
        f"{path} is not a packaged model: it holds {found}, and a state dict with {EXTRA_STATE} is "
        "needed. A checkpoint of training is packaged at the end of a run."
    )


def _check_plain(content: Mapping[Any, Any], path: Path) -> None:
    """All that a file holds must be tensors with names."""
    if not all(isinstance(name, str) and isinstance(t, Tensor) for name, t in content.items()):
        raise WeightsError(f"{path} is damaged: not all that it holds are tensors; bring it again.")
    check_tensors(content, path)
