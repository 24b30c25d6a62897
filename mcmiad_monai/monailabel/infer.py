"""The inference task: a request with an image comes in, a volume and scores go out."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device, strtobool

from mcmiad_monai import __version__
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.monailabel.bundles import BundleInference, ModelError, Study, StudyError
from mcmiad_monai.monailabel.render import (
    BAND_LIMITS,
    LABELS,
    label_names,
    render,
    write_volume,
)
from mcmiad_monai.monailabel.requests import (
    OUTPUT_KINDS,
    RequestError,
    extension,
    first,
    label_dtype,
    output_kind,
)
from mcmiad_monai.transforms import VolumeError
from mcmiad_monai.transforms.dicom import read_dicom_folder

#: Studies whose heatmap is kept, so that another output of the same study needs no second run.
KEPT_STUDIES = 2
NOTE = "Research software, not a medical device, not for diagnosis."


class AnomalyInferTask(InferTask):
    """Heatmap, mask or severity bands of a study, with its scores.

    Parameters
    ----------
    inference : BundleInference
        The bundle.
    description : str
        For people who choose a model.
    """

    def __init__(self, inference: BundleInference, description: str = "") -> None:
        self.inference = inference
        self._kept: OrderedDict[tuple[Any, ...], Study] = OrderedDict()
        choices: dict[str, Any] = {"device": device_list(), "output_kind": list(OUTPUT_KINDS)}
        if inference.modality.is_unified:
            # the empty choice leaves it to the header of the study
            choices["modality"] = ["", *sorted(MODALITIES)]
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={name: value for value, name in LABELS.items()},
            dimension=3,
            description=description or f"Anomaly heatmaps: {inference.modality.title}",
            config=choices,
        )

    def info(self) -> dict[str, Any]:
        """What clients are told of the model."""
        return {
            **super().info(),
            "version": __version__,
            "modality": self.inference.modality.name,
            "note": NOTE,
        }

    def is_valid(self) -> bool:
        """Whether the bundle is trained."""
        return self.inference.stamp is not None

    def get_path(self, validate: bool = True) -> str | None:
        """Path of the model file; with ``validate``, None where there is none."""
        return str(self.inference.model_file) if self.is_valid() or not validate else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Analyse a study and write the volume that was asked for.

        Parameters
        ----------
        request : mapping
            ``image`` is a path; ``case``, ``output_kind``, ``modality``, ``dicom_modality``,
            ``device``, ``result_extension``, ``result_dtype``, ``result_compress`` and
            ``skip_writer`` are optional. So are ``label``, the path of the organ's mask for a
            model that looks at one organ, and ``dicom_series``, the folder of slices that the
            image was made of: MONAI Label stacks slices as if none were missing, so they are
            checked again.

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
        path = str(request["image"])
        kind, suffix = output_kind(request), extension(request, path)
        dtype = label_dtype(request)
        study = self.study(request)
        analysed = time.monotonic()
        volume = render(study.heatmap, kind, threshold=study.threshold, dtype=dtype)
        answer = self._answer(study, kind) | {"label_names": label_names(volume, kind)}
        written = None
        if not strtobool(request.get("skip_writer")):
            compress = bool(strtobool(request.get("result_compress")))
            written = str(write_volume(volume, study.affine, suffix, compress=compress))
        now = time.monotonic()
        answer["latencies"] = {
            "analysis": round(analysed - started, 2),
            "write": round(now - analysed, 2),
            "total": round(now - started, 2),
        }
        return written, answer

    def study(self, request: Mapping[str, Any]) -> Study:
        """Analysis of the study of a request, which is kept for the next request.

        Raises
        ------
        RequestError
            See ``__call__``.
        """
        path, device = Path(request["image"]), name_to_device(request.get("device"))
        case = str(request.get("case") or path.name)
        told = {
            "modality": first(request.get("modality")) or None,
            "dicom_modality": request.get("dicom_modality") or None,
            "organ": request.get("label") or None,
        }
        series = request.get("dicom_series")
        key = (case, str(path), _stamp(path), self.inference.stamp, device, *told.values())
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            if series:
                header = read_dicom_folder(Path(series)).dicom_modality
                told["dicom_modality"] = told["dicom_modality"] or header
            study = self.inference(path, case, device=device, **told)
        except (StudyError, VolumeError) as error:
            message = str(error).replace(str(path), case).replace(str(series), case)
            if self.inference.modality.is_unified and not told["modality"]:
                message += " In a request, the parameter modality says it."
            raise RequestError(400, message) from error
        except ModelError as error:
            raise RequestError(500, str(error)) from error
        self._kept[key] = study
        while len(self._kept) > KEPT_STUDIES:
            self._kept.popitem(last=False)
        return study

    def _answer(self, study: Study, kind: str) -> dict[str, Any]:
        return {
            **study.scores,
            "model": self.inference.name,
            "modality": study.modality,
            "output_kind": kind,
            "mask_threshold": study.threshold,
            "bands": {
                name: limit * study.threshold
                for name, limit in zip(LABELS.values(), BAND_LIMITS, strict=True)
            },
            "heatmap_maximum": float(study.heatmap.max()),
            "heatmap_unit": "1.0 is the calibrated pixel threshold",
            "software": {"mcmiad_monai": __version__},
            "note": NOTE,
            "centroids": {},  # OHIF looks for them
        }


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
