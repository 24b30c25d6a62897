"""A bundle that the app serves: its model is opened once, and again when the model file changes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.errors import BundleError, unwrap
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.inference.settings import HEATMAP_THRESHOLD, bundle_settings
from mcmiad_monai.modality import get_modality
from mcmiad_monai.predictor import MODEL, Predictor, load
from mcmiad_monai.transforms.metadata import MODALITY


class StudyError(ValueError):
    """A study that the model cannot use; the message says why and what to do."""


class ModelError(RuntimeError):
    """A bundle whose configuration or model cannot be used."""


class ServedBundle:
    """A bundle on disk; a new model file is used without a restart.

    Parameters
    ----------
    root : path
        The bundle's folder.

    Attributes
    ----------
    modality : Modality
        Of the bundle.
    mask_threshold : float
        Of the mask, in units of the heatmap.

    Raises
    ------
    ModelError
        If the folder has no inference configuration of this project.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.name = self.root.name
        try:
            settings = bundle_settings(self.root)
            self.modality = get_modality(settings["bundle_modality"])
            self.mask_threshold = float(settings.get("mask_threshold", HEATMAP_THRESHOLD))
        except BundleError as error:
            raise ModelError(str(error)) from error
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise ModelError(f"{self.root} is no bundle of this project: {error}") from error
        self._opening = threading.Lock()
        self._predictors: dict[str, Predictor] = {}  # by device
        self._opened: str | None = None

    @property
    def model_file(self) -> Path:
        """The model, which a bundle has once it is trained."""
        return self.root / MODEL

    @property
    def stamp(self) -> str | None:
        """Changes with the model file; None where there is none."""
        try:
            found = self.model_file.stat()
        except OSError:
            return None
        return f"{found.st_mtime_ns}-{found.st_size}"

    def __call__(
        self, path: str | Path, case: str, *, device: str = "cpu", **known: Any
    ) -> Prediction:
        """Heatmap and scores of one study.

        Parameters
        ----------
        path : path
            The image.
        case : str
            Its name in the scores.
        device : str
            Where to run the network.
        **known
            ``modality``, ``dicom_modality`` and ``organ`` as `Predictor.prepare` takes them; None
            is the same as left out.

        Raises
        ------
        StudyError
            If the image cannot be used.
        ModelError
            If the bundle cannot be used.
        """
        predictor = self._predictor(device)
        try:
            sample = predictor.prepare({"image": str(path), "case": case, **known})
            predictor.calibration_of(sample["image"].meta.get(MODALITY))
        except Exception as error:
            raise StudyError(str(unwrap(error))) from error
        return predictor.predict(sample)

    def _predictor(self, device: str) -> Predictor:
        with self._opening:
            stamp = self.stamp
            if stamp is None:
                raise ModelError(f"{self.name} has no model yet; train it, or bring its model.pt.")
            if stamp != self._opened:
                self._predictors.clear()
                self._opened = stamp
            if device not in self._predictors:
                try:
                    self._predictors[device] = load(self.root, device=device)
                except Exception as error:
                    message = f"bundle {self.name} cannot be used: {unwrap(error)}"
                    raise ModelError(message) from error
            return self._predictors[device]


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
    configs = sorted(folder.glob("[!.]*/configs/inference.yaml"))  # hidden ones are half copied
    found = {file.parent.parent.name: file.parent.parent for file in configs}
    missing = [name for name in names if name not in found]
    if missing or not found:
        raise ModelError(
            f"{folder} has the bundles {sorted(found) or 'none'}"
            + (f", and not {', '.join(missing)}" if missing else "")
            + "; lay the app out again with `mcmiad label-app`, or copy a bundle there."
        )
    return {name: root for name, root in found.items() if not names or name in names}
