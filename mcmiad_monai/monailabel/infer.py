"""The inference task: a request with an image comes in, a volume and scores go out."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device, strtobool

from mcmiad_monai.inference.bands import BAND_LIMITS, LABELS
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.monailabel.bundles import ModelError, ServedBundle, StudyError
from mcmiad_monai.monailabel.render import label_names, render, write_volume
from mcmiad_monai.monailabel.requests import (
    OUTPUT_KINDS,
    RequestError,
    extension,
    given,
    label_dtype,
    output_kind,
)
from mcmiad_monai.transforms import VolumeError
from mcmiad_monai.transforms.dicom import read_dicom_folder
from mcmiad_monai.transforms.metadata import NIFTI_HEADER
from mcmiad_monai.version import __version__

#: Studies whose heatmap is kept, so that another output of the same study needs no second run.
KEPT_STUDIES = 2
INSTEAD_OF_HEATMAP = (
    "result_dtype {dtype} holds no heatmap, so these are severity bands, as viewers show them. For "
    "the heatmap ask for result_dtype float32."
)
NOTE = "Research software, not a medical device, not for diagnosis."


class AnomalyInferTask(InferTask):
    """Heatmap, mask or severity bands of a study, with its scores.

    Parameters
    ----------
    bundle : ServedBundle
        The model.
    """

    def __init__(self, bundle: ServedBundle) -> None:
        self.bundle = bundle
        self._kept: OrderedDict[tuple[Any, ...], Prediction] = OrderedDict()
        choices: dict[str, Any] = {"device": device_list(), "output_kind": list(OUTPUT_KINDS)}
        if bundle.modality.is_unified:
            # the empty choice leaves it to the header of the study
            choices["modality"] = ["", *sorted(MODALITIES)]
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={name: value for value, name in LABELS.items()},
            dimension=3,
            description=f"Anomaly heatmaps: {bundle.modality.title}",
            config=choices,
        )

    def info(self) -> dict[str, Any]:
        """Description of the model for clients."""
        own = {"version": __version__, "modality": self.bundle.modality.name, "note": NOTE}
        return {**super().info(), **own}

    def is_valid(self) -> bool:
        """Whether the bundle is trained."""
        return self.bundle.stamp is not None

    def get_path(self, validate: bool = True) -> str | None:
        """Path of the model file; with ``validate``, None where there is none."""
        return str(self.bundle.model_file) if self.is_valid() or not validate else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Analyse a study and write the volume that the request asks for.

        Parameters
        ----------
        request : mapping
            ``image`` is a path; ``case``, ``output_kind``, ``modality``, ``dicom_modality``,
            ``device``, ``result_extension``, ``result_dtype``, ``result_compress`` and
            ``skip_writer`` are optional. So are ``label``, the path of the organ's mask for a
            model that looks at one organ, and ``dicom_series``, the folder of slices that the
            image was made of: MONAI Label stacks slices without checking that none is missing, so
            they are checked again.

        Returns
        -------
        (str or None, dict)
            Path of a temporary file, None with ``skip_writer``; and the JSON answer.

        Raises
        ------
        RequestError
            If the request or the image cannot be used; 500 if the bundle cannot.
        """
        started = time.monotonic()
        kind, suffix = output_kind(request), extension(request, str(request["image"]))
        dtype = label_dtype(request)
        banded = kind != "heatmap" and given(request, "output_kind") == "heatmap"
        prediction = self.predict(request)
        analysed = time.monotonic()
        threshold = self.bundle.mask_threshold
        heatmap = prediction.heatmap[0].numpy()  # (X, Y, Z)
        volume = render(heatmap, kind, threshold=threshold, dtype=dtype)
        written = None
        if not strtobool(request.get("skip_writer")):
            compress = bool(strtobool(request.get("result_compress")))
            affine = np.asarray(prediction.heatmap.affine, dtype=np.float64)
            header = prediction.heatmap.meta.get(NIFTI_HEADER)
            file = write_volume(volume, affine, suffix, compress=compress, header=header)
            written = str(file)
        now = time.monotonic()
        return written, {
            **prediction.scores,
            "model": self.bundle.name,
            "output_kind": kind,
            **({"output_note": INSTEAD_OF_HEATMAP.format(dtype=dtype)} if banded else {}),
            "mask_threshold": threshold,
            "bands": {
                name: limit * threshold
                for name, limit in zip(LABELS.values(), BAND_LIMITS, strict=True)
            },
            "heatmap_maximum": float(heatmap.max()),
            "heatmap_unit": "1.0 is the calibrated pixel threshold",
            "software": {"mcmiad_monai": __version__},
            "note": NOTE,
            "centroids": {},  # OHIF looks for them
            "label_names": label_names(volume, kind),
            "latencies": {
                "analysis": round(analysed - started, 2),
                "write": round(now - analysed, 2),
                "total": round(now - started, 2),
            },
        }

    def predict(self, request: Mapping[str, Any]) -> Prediction:
        """Prediction for the study of a request, kept for the next request.

        Raises
        ------
        RequestError
            See ``__call__``.
        """
        path, device = Path(request["image"]), name_to_device(request.get("device"))
        case = str(request.get("case") or path.name)
        known = {
            "modality": given(request, "modality"),
            "dicom_modality": request.get("dicom_modality") or None,
            "organ": request.get("label") or None,
        }
        series = request.get("dicom_series")
        key = (case, str(path), _stamp(path), self.bundle.stamp, device, *known.values())
        prediction = self._kept.pop(key, None)
        if prediction is None:
            try:
                if series:
                    header = read_dicom_folder(Path(series)).dicom_modality
                    known["dicom_modality"] = known["dicom_modality"] or header
                prediction = self.bundle(path, case, device=device, **known)
            except (StudyError, VolumeError) as error:
                message = str(error).replace(str(path), case).replace(str(series), case)
                if self.bundle.modality.is_unified and not known["modality"]:
                    message += " In a request, the parameter modality says it."
                raise RequestError(400, message) from error
            except ModelError as error:
                raise RequestError(500, str(error)) from error
        self._kept[key] = prediction
        while len(self._kept) > KEPT_STUDIES:
            self._kept.popitem(last=False)
        return prediction


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
