"""The packaged model: one file with encoder, text prior, head, score and calibration.

Loading it needs no weight hub, no text encoder and no network.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch

from mcmiad_monai.files import save_torch
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import encoder_from_config
from mcmiad_monai.networks.head import head_from_config
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.weights import WeightsError

PACKAGE_FORMAT = 1
"""Version of the file's layout."""

PACKAGE_KEYS = frozenset({"model", "config", "provenance", "calibration", "format"})
"""What a package holds: a state dict, three JSON strings and the version."""


def package(
    detector: MCMIADDetector,
    *,
    calibration: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a detector into a dict of tensors, JSON strings and a number, safe to unpickle.

    Parameters
    ----------
    detector : MCMIADDetector
    calibration : dict, optional
        Instead of the detector's own; fit for JSON.
    provenance : dict, optional
        Added to the detector's own; fit for JSON.
    """
    config = {
        "encoder": detector.encoder.config,
        "head": detector.head.config,
        "score": detector.score.config,
    }
    return {
        "model": {name: tensor.detach().cpu() for name, tensor in detector.state_dict().items()},
        "config": json.dumps(config),
        "provenance": json.dumps({**detector.provenance, **(provenance or {})}),
        "calibration": json.dumps(detector.calibration if calibration is None else calibration),
        "format": PACKAGE_FORMAT,
    }


def save_package(
    path: str | Path,
    detector: MCMIADDetector,
    *,
    calibration: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a `package` to a file, usually ``models/model.pt``, whole or not at all."""
    save_torch(package(detector, calibration=calibration, provenance=provenance), path)


def load_package(
    path: str | Path,
    map_location: str | torch.device = "cpu",
    *,
    modality: str | None = None,
) -> MCMIADDetector:
    """Read a package into a detector in evaluation mode.

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
        If the file is missing, is not a package, has a newer layout, or is for another modality.
    """
    content = _read(Path(path), map_location)
    config = json.loads(content["config"])
    head, encoder = head_from_config(config["head"]), encoder_from_config(config["encoder"])
    detector = MCMIADDetector(encoder, head, AnomalyScore(**config["score"]))
    try:
        detector.load_state_dict(content["model"])
    except RuntimeError as error:
        raise WeightsError(
            f"the weights in {path} do not fit the model that it describes ({error}). It may have "
            "been written with another version of timm or OpenCLIP: see its provenance."
        ) from error
    detector.calibration = json.loads(content["calibration"])
    detector.provenance = json.loads(content["provenance"])
    trained_for = detector.provenance.get("training", {}).get("modality")
    if modality is not None and trained_for not in (None, modality):
        raise WeightsError(
            f"{path} was trained for {trained_for}, and the images are {modality}; use the bundle "
            "of that modality, or train one."
        )
    encoder.provenance = detector.provenance["encoder"]
    head.prior_provenance = detector.provenance["text_prior"]
    return detector.to(map_location).eval()


def _read(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    """Unpickle tensors and strings only, and check that they are a package."""
    if not path.is_file():
        raise WeightsError(
            f"there is no packaged model {path}; train one, or bring the model.pt of a bundle."
        )
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        problem = str(error).split("\n", 1)[0]
        raise WeightsError(f"{path} is not a packaged model: {problem}") from error
    if not isinstance(content, dict) or not set(content) >= PACKAGE_KEYS:
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content)
        raise WeightsError(
            f"{path} is not a packaged model: it holds {found}, and {sorted(PACKAGE_KEYS)} are "
            "needed. A checkpoint of training is packaged at the end of a run."
        )
    if content["format"] > PACKAGE_FORMAT:
        raise WeightsError(
            f"{path} has the layout {content['format']}, and this version reads up to "
            f"{PACKAGE_FORMAT}; update mcmiad-monai."
        )
    return content
