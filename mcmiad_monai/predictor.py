"""The unit of work: a trained model, opened once and called with one study after the other.

    study ─ prepare: load, check, orient, normalise ─ heat: slices → network → volume ─ predict:
    back to the study's own grid, mask, scores
`inference.yaml` of a bundle names the same parts in MONAI's words and writes the same files.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import nn

from mcmiad_monai.calibration import Calibration, calibration_for, check_calibration
from mcmiad_monai.data.cases.names import stem_of
from mcmiad_monai.data.studies import prepare_study
from mcmiad_monai.errors import BundleError, unwrap
from mcmiad_monai.inference.continuing import made_with
from mcmiad_monai.inference.inferer import SLICE_SCORES, SliceHeatmapInferer
from mcmiad_monai.inference.nearest import recall_from
from mcmiad_monai.inference.outputs import anomaly_mask, findings, study_scores
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.inference.settings import InferenceOptions, bundle_settings
from mcmiad_monai.modality import Modality, get_modality
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.weights import WeightsError
from mcmiad_monai.runtime.device import choose_device
from mcmiad_monai.runtime.open import open_network
from mcmiad_monai.transforms import CanonicalOrientationd, on_whole_grid, preprocessing
from mcmiad_monai.transforms.metadata import INPUT, MODALITY

logger = logging.getLogger(__name__)

#: The model of a bundle, below its folder.
MODEL = Path("models") / "model.pt"


def load(
    source: str | Path, *, device: str | torch.device | None = None, **options: Any
) -> Predictor:
    """Open a trained model.

    Parameters
    ----------
    source : path
        Folder of a trained bundle, or a model file ``model.pt``. An export ``model.onnx`` beside
        the model is what the engines for CPUs run. Settings at the top of a bundle's
        ``inference.yaml`` hold unless they are given here.
    device : str or torch.device, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; by default a GPU if there is one.
    **options
        See `InferenceOptions`.

    Raises
    ------
    BundleError
        If there is no model at `source`, or an option is not known.
    WeightsError
        If the file is not a model of this project.
    ExportError, ValueError
        If the engine or the device is not there, or an option has no such value.
    """
    root = Path(source)
    model = root / MODEL if root.is_dir() else root
    if not model.is_file():
        raise BundleError(
            f"{root} has no trained model: {model} does not exist. Train one with mcmiad train, or "
            "name the folder of a trained bundle."
        )
    known = set(InferenceOptions.__dataclass_fields__)
    if unknown := sorted(set(options) - known):
        raise BundleError(f"{unknown} are no options; they are {sorted(known)} and device.")
    settings = bundle_settings(root) if root.is_dir() else {}
    modality = settings.pop("bundle_modality", None)
    chosen = replace(InferenceOptions(**settings), **options)
    place = choose_device(device)
    detector = load_package(model, modality=modality)
    network = open_network(
        detector,
        engine=chosen.engine,
        path=model.with_suffix(".onnx"),
        device=place,
        precision=chosen.precision,
        compiled=chosen.compiled,
    )
    return Predictor(detector, network, chosen, modality=modality, device=place)


class Predictor:
    """A trained model, ready for studies.

    Several threads may call it: studies are read and written side by side, and the network computes
    one at a time.

    Parameters
    ----------
    detector : MCMIADDetector
        Of the package.
    network : Module
        What computes it; see `open_network`.
    options : InferenceOptions
    modality : str, optional
        Of the model, where its package does not say it.
    device : torch.device
        Of the network.

    Attributes
    ----------
    modality : Modality
        Of the model.
    slice_axis : int
        Axis of the canonical volume along which slices are cut.
    slice_range : (float, float)
        Share of the slices that are looked at.
    made_with : dict
        What a result depends on beside the study.

    Raises
    ------
    WeightsError
        If the package does not say for which modality it was trained, or has no usable thresholds.
    """

    def __init__(
        self,
        detector: MCMIADDetector,
        network: nn.Module,
        options: InferenceOptions,
        *,
        modality: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        trained = detector.trained_with
        name = trained.get("modality") or modality
        if name is None:
            raise WeightsError(
                "the model does not say for which modality it was trained; open it through its "
                "bundle's folder, or train it with mcmiad train."
            )
        try:
            check_calibration(detector.calibration)
        except ValueError as error:
            raise WeightsError(f"{error} Bring the model.pt again, or train again.") from error
        self.detector, self.network, self.options = detector, network, options
        self.device = torch.device("cpu") if device is None else device
        self.modality: Modality = get_modality(name)
        self.slice_axis = self.modality.slice_axis
        low, high = options.slice_range or trained.get("slice_range", (0.0, 1.0))
        self.slice_range = (float(low), float(high))
        self._region: dict[str, Any] = {
            "region": options.region or trained.get("region", "whole"),
            "organ_label": options.organ_label or trained.get("organ_label"),
        }
        self._inferer = SliceHeatmapInferer(
            axis=self.slice_axis,
            slice_range=self.slice_range,
            context=detector.context,
            batch_size=options.batch_size,
            calibration=detector.calibration,
            score=detector.score.slice_score,
        )
        self._prepare = self.transforms()
        self._prepare_with_label = self.transforms(label=True)
        self._network_free = threading.Lock()
        self.made_with = made_with(
            detector,
            slice_range=self.slice_range,
            mask_threshold=options.mask_threshold,
            check_modality=options.check_modality,
            precision=options.precision,
            **self._region,
        )

    @property
    def engine(self) -> str:
        """Name and version of what computes."""
        return str(getattr(self.network, "name", f"PyTorch {torch.__version__}"))

    def calibration_of(self, modality: str | None) -> Calibration | None:
        """Thresholds of studies of a modality; None for a model without.

        Raises
        ------
        ValueError
            If the model was not calibrated for the modality.
        """
        return calibration_for(self.detector.calibration, modality)

    def transforms(self, *, label: bool = False) -> Compose:
        """The steps from a study's path to a normalised canonical volume; see `preprocessing`."""
        return preprocessing(
            self.modality,
            mask_key="label" if label else None,
            check_modality=self.options.check_modality,
            max_voxels=self.options.max_voxels,
            **self._region,
            **self.detector.image_options,
        )

    def __call__(
        self,
        study: Any,
        *,
        name: str | None = None,
        modality: str | None = None,
        organ: str | Path | None = None,
    ) -> Prediction:
        """Heatmap, mask and scores of a study.

        Parameters
        ----------
        study : path, nibabel image, MetaTensor or (array, affine)
            A file or a DICOM folder; an array (X, Y, Z), affine (4, 4) in RAS millimetres.
        name : str, optional
            Of the study; by default that of its file, without the suffix.
        modality : str, optional
            Of the study, for a unified model.
        organ : path, optional
            Mask of the organ to look in, for a model that looks at one organ.

        Raises
        ------
        VolumeError
            If the study cannot be used.
        """
        case = {"image": study, "case": name or _name_of(study), "modality": modality}
        return self.predict(self.prepare({**case, "organ": organ}))

    def prepare(self, case: Mapping[str, Any], *, label: bool = False) -> dict[str, Any]:
        """Read a study and bring it to the canonical grid, normalised.

        Parameters
        ----------
        case : mapping
            ``image`` and ``case``, its name; and what is known besides, as `find_cases` gives it.
        label : bool
            Bring the lesion mask along.

        Returns
        -------
        dict
            ``image`` (1, X, Y, Z), in the model's field of view, and with `label` its ``label``.

        Raises
        ------
        VolumeError
            If the study cannot be used.
        """
        given = {key: value for key, value in case.items() if value is not None}
        given.setdefault("modality", self.options.modality)
        steps = self._prepare_with_label if label else self._prepare
        try:
            return prepare_study(given, steps)
        except RuntimeError as error:
            raise unwrap(error) from error

    def heat(self, image: MetaTensor) -> MetaTensor:
        """Heatmap of a prepared image, both (1, X, Y, Z) on the canonical grid.

        ``meta["slice_scores"]`` is (n,), NaN in slices that were not looked at.
        """
        with self._network_free:
            heat = self._inferer(cast(MetaTensor, image[None]), self.network)
        heatmap = cast(MetaTensor, heat[0])
        heatmap.meta[SLICE_SCORES] = heat.meta[SLICE_SCORES].reshape(-1)
        return heatmap

    def predict(self, sample: Mapping[str, Any]) -> Prediction:
        """Heatmap on the study's own grid, mask and scores of a sample of `prepare`."""
        heat = self.heat(sample["image"])
        scores = heat.meta.pop(SLICE_SCORES)
        orient = next(t for t in self._prepare.transforms if isinstance(t, CanonicalOrientationd))
        heatmap = orient.orient.inverse(on_whole_grid(heat))
        found = study_scores(
            heatmap,
            scores,
            slice_axis=self.slice_axis,
            calibration=self.calibration_of(heatmap.meta.get(MODALITY)),
        )
        mask = anomaly_mask(heatmap, self.options.mask_threshold)
        found |= findings(heatmap, mask)
        found |= {"input": heatmap.meta.get(INPUT), "made_with": self.made_with}
        recall = recall_from(
            self.detector, sample["image"], axis=self.slice_axis, lock=self._network_free
        )
        return Prediction(heatmap, mask, found, on_whole_grid(sample["image"]), recall)


def _name_of(study: Any) -> str:
    """Name of its file or folder, without the suffix."""
    if isinstance(study, MetaTensor):
        study = study.meta.get("filename_or_obj", "study")
    elif hasattr(study, "get_filename"):
        study = study.get_filename() or "study"
    return stem_of(Path(study)) if isinstance(study, (str, Path)) else "study"
