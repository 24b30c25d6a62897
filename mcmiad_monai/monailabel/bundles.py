"""A bundle's inference, opened once and used for one study after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.data import MetaTensor, decollate_batch
from monai.transforms import SaveImaged
from numpy.typing import NDArray

from mcmiad_monai.bundle import open_workflow
from mcmiad_monai.calibration import calibration_for
from mcmiad_monai.errors import unwrap
from mcmiad_monai.inference.inferer import SLICE_SCORES
from mcmiad_monai.inference.outputs import study_scores
from mcmiad_monai.modality import Modality, get_modality
from mcmiad_monai.transforms.metadata import MODALITY


class StudyError(ValueError):
    """A study that the bundle's preprocessing refuses; the message says why and what to do."""


class ModelError(RuntimeError):
    """A bundle whose configuration or model cannot be used."""


@dataclass(frozen=True)
class Study:
    """What a bundle found in a study.

    Attributes
    ----------
    heatmap : (X, Y, Z) ndarray of float32
        On the grid of the image; 1.0 is the calibrated pixel threshold.
    affine : (4, 4) ndarray of float64
        Of the image, in RAS millimetres.
    scores : dict
        Of :func:`mcmiad_monai.inference.outputs.study_scores`.
    threshold : float
        Of the mask, in units of the heatmap.
    modality : str
        What the study was taken for.
    """

    heatmap: NDArray[np.float32]
    affine: NDArray[np.float64]
    scores: dict[str, Any]
    threshold: float
    modality: str


@dataclass(frozen=True)
class _Chain:
    """Parts of an inference configuration, for one device."""

    preprocessing: Callable[[dict[str, Any]], Any]
    inferer: Callable[..., Any]
    network: Any
    postprocessing: Sequence[Callable[[Any], Any]]
    slice_axis: int
    threshold: float
    calibration: Mapping[str, Any]


class BundleInference:
    """The inference of a bundle on disk; a new model file is taken up without a restart.

    Parameters
    ----------
    root : path
        The bundle's folder.

    Raises
    ------
    ModelError
        If the folder has no inference configuration of this project.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.name = self.root.name
        self.modality: Modality = _modality_of(self.root)
        self._lock = threading.Lock()
        self._chains: dict[str, _Chain] = {}
        self._opened: str | None = None

    @property
    def model_file(self) -> Path:
        """The packaged model, which a bundle has once it is trained."""
        return self.root / "models" / "model.pt"

    @property
    def stamp(self) -> str | None:
        """Changes with the model file; None where there is none."""
        try:
            found = self.model_file.stat()
        except OSError:
            return None
        return f"{found.st_mtime_ns}-{found.st_size}"

    def __call__(self, path: str | Path, case: str, *, device: str = "cpu", **told: Any) -> Study:
        """Analyse one study.

        Parameters
        ----------
        path : path
            The image.
        case : str
            Its name in the scores.
        device : str
            Where to run the network.
        **told
            What is known about the study besides, under keys that the preprocessing reads:
            ``modality``, ``dicom_modality``, ``organ``. None is the same as left out.

        Raises
        ------
        StudyError
            If the image cannot be used.
        ModelError
            If the bundle cannot be used.
        """
        with self._lock:
            chain = self._chain(device)
            data = {"image": str(path), "case": case}
            data |= {key: value for key, value in told.items() if value is not None}
            return self._run(chain, data)

    def _run(self, chain: _Chain, data: dict[str, Any]) -> Study:
        case = data["case"]
        try:
            sample = chain.preprocessing(data)
            image = sample["image"]
            modality = str(image.meta.get(MODALITY) or self.modality.name)
            calibration = calibration_for(chain.calibration, modality)
        except Exception as error:
            raise StudyError(str(unwrap(error))) from error
        image.meta["case"] = case
        with torch.inference_mode():
            heatmaps = chain.inferer(image[None], chain.network)
        sample["pred"] = decollate_batch(heatmaps)[0]
        for transform in chain.postprocessing:
            sample = transform(sample)
        heatmap: MetaTensor = sample["pred"]
        heatmap.meta["case"] = case
        return Study(
            heatmap=np.asarray(heatmap.as_tensor()[0].cpu(), dtype=np.float32),
            affine=np.asarray(heatmap.affine, dtype=np.float64),
            scores=study_scores(
                heatmap,
                sample[SLICE_SCORES],
                slice_axis=chain.slice_axis,
                calibration=calibration,
            ),
            threshold=chain.threshold,
            modality=modality,
        )

    def _chain(self, device: str) -> _Chain:
        stamp = self.stamp
        if stamp is None:
            raise ModelError(f"{self.name} has no model yet; train it, or bring its model.pt.")
        if stamp != self._opened:
            self._chains.clear()
            self._opened = stamp
        if device not in self._chains:
            try:
                self._chains[device] = self._open(device)
            except Exception as error:
                message = unwrap(error)
                raise ModelError(f"bundle {self.name} cannot be used: {message}") from error
        return self._chains[device]

    def _open(self, device: str) -> _Chain:
        # logging_file: the bundle's own logging would take the place of the server's
        overrides = {"device": device, "logging_file": False}
        part = open_workflow(self.root, "inference", overrides).parser.get_parsed_content
        return _Chain(
            preprocessing=part("preprocessing"),
            inferer=part("inferer"),
            network=part("network"),
            postprocessing=[t for t in part("postprocessing").transforms if not _writes(t)],
            slice_axis=int(part("slice_axis")),
            threshold=float(part("mask_threshold")),
            calibration=part("network_def").calibration,
        )


def find_bundles(model_folder: str | Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """Bundles of this project in a folder, by name.

    Parameters
    ----------
    model_folder : path
        Holds one folder a bundle.
    names : sequence of str
        Only these; all where it is empty.

    Raises
    ------
    ModelError
        If one of the names is not there, or there is no bundle at all.
    """
    folder = Path(model_folder)
    configs = folder.glob("[!.]*/configs/inference.yaml")  # hidden ones are half copied
    found = {file.parent.parent.name: file.parent.parent for file in configs}
    missing = [name for name in names if name not in found]
    if missing or not found:
        raise ModelError(
            f"{folder} has the bundles {sorted(found) or 'none'}"
            + (f", and not {', '.join(missing)}" if missing else "")
            + "; lay the app out again with `mcmiad label-app`, or copy a bundle there."
        )
    return {name: found[name] for name in sorted(found) if not names or name in names}


def _modality_of(root: Path) -> Modality:
    path = root / "configs" / "inference.yaml"
    try:
        return get_modality(str(yaml.safe_load(path.read_text(encoding="utf-8"))["modality"]))
    except (OSError, TypeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"{root} is no bundle of this project: {path}: {error}.") from error


def _writes(transform: Any) -> bool:
    """Whether a transform leaves files behind, which a server does not want."""
    return isinstance(transform, SaveImaged) or type(transform).__name__.startswith("Save")
