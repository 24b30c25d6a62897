"""The app that ``monailabel start_server`` runs: bundles of this project behind one REST API."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.others.generic import strtobool

from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.monailabel.answers import install_error_answers
from mcmiad_monai.monailabel.batch import MASK_TAG, AnomalyBatchInfer
from mcmiad_monai.monailabel.bundles import ServedBundle, find_bundles
from mcmiad_monai.monailabel.guard import Limits, install_guard, is_guarded
from mcmiad_monai.monailabel.infer import NOTE, AnomalyInferTask
from mcmiad_monai.monailabel.requests import (
    RequestError,
    label_tag,
    one_line_in_worker,
    output_kind,
)
from mcmiad_monai.monailabel.scoring import AnomalyScoring
from mcmiad_monai.monailabel.strategies import MostAnomalousFirst
from mcmiad_monai.monailabel.studies import StudiesFolder
from mcmiad_monai.monailabel.train import NormalTrainTask
from mcmiad_monai.version import __version__

#: MONAI Label's default filter for the series of a DICOMweb server.
CT_ONLY = {"Modality": "CT"}


class MCMIADApp(MONAILabelApp):
    """Anomaly heatmaps in MONAI Label.

    Each folder of ``<app>/model`` is a bundle and becomes one model with a trainer and a scoring
    method.

    Parameters
    ----------
    app_dir : str
        As `lay_out_app` makes it.
    studies : str
        Folder of studies, or the address of a DICOMweb server.
    conf : mapping
        Of ``--conf``: ``models`` names the bundles to serve, separated by commas (default: all);
        ``weights``, ``text_prior`` and ``method`` are defaults of training; ``skip_trainers``
        ``true`` leaves training out; ``max_upload_mb`` and ``max_waiting`` are those of `Limits`.

    Raises
    ------
    ModelError
        If there is no bundle, or one of those named is missing.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        names = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
        found = find_bundles(Path(app_dir) / "model", names)
        self.bundles = {name: ServedBundle(root) for name, root in found.items()}
        self.limits = Limits.of(conf)
        self._one_inference = threading.Lock()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="MCMIAD anomaly heatmaps",
            description=f"Anomaly heatmaps, learned from healthy studies alone. {NOTE}",
            version=__version__,
        )
        if is_guarded():  # POST /reload makes the app anew, and does not say that it is a server's
            self.server_mode(True)

    def init_infers(self) -> dict[str, AnomalyInferTask]:
        """One model a bundle."""
        self.tasks = {name: AnomalyInferTask(bundle) for name, bundle in self.bundles.items()}
        return self.tasks

    def init_trainers(self) -> dict[str, NormalTrainTask]:
        """One trainer a bundle."""
        if strtobool(self.conf.get("skip_trainers", "false")):
            return {}
        return {name: NormalTrainTask(bundle, self.conf) for name, bundle in self.bundles.items()}

    def init_strategies(self) -> dict[str, Any]:
        """Which study to look at next."""
        return {"most_anomalous_first": MostAnomalousFirst(), "random": Random()}

    def init_scoring_methods(self) -> dict[str, AnomalyScoring]:
        """One method a bundle; ``anomaly_score`` where there is one bundle."""
        alone = len(self.tasks) == 1
        return {
            "anomaly_score" if alone else f"anomaly_score_{name}": AnomalyScoring(
                name, task, self.infer
            )
            for name, task in self.tasks.items()
        }

    def init_batch_infer(self) -> AnomalyBatchInfer:
        """Masks and heatmaps of all studies."""
        return AnomalyBatchInfer(self.tasks)

    def init_datastore(self) -> Any:
        """Datastore of a folder, or of a server."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return StudiesFolder(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_remote_datastore(self) -> Any:
        """Datastore of a server; of a DICOMweb server, list the modalities of the bundles.

        MONAI Label's default, CT alone, would list nothing useful where no bundle is for CT.
        """
        kinds = [bundle.modality for bundle in self.bundles.values()]
        if any(kind.is_unified for kind in kinds):
            kinds = list(MODALITIES.values())
        codes = {str(kind.dicom) for kind in kinds}
        if settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == CT_ONLY and "CT" not in codes:
            settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER = {"Modality": "\\".join(sorted(codes))}
        return super().init_remote_datastore()

    def on_init_complete(self) -> None:
        """Before the server starts: make it check requests and answer errors with their reason."""
        install_error_answers()
        install_guard(self.limits)
        super().on_init_complete()

    def bundle_path(self, model: str | None) -> None:
        """Refuse models that are not there before a background task starts.

        Bundles hold no Python, so there is no path to import from.
        """
        if model:
            _known("model", model, self.tasks)

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Analyse one study, after those that wait; `AnomalyInferTask` lists the parameters.

        Raises
        ------
        RequestError
            404 for an image or a model that is not there, 409 for a model that is not trained, 400
            for what cannot be used.
        """
        task = _known("model", request.get("model"), self.tasks)
        if not task.is_valid():
            raise RequestError(409, f"{task.bundle.name} has no model yet; train it first.")
        store = datastore or self.datastore()
        if output_kind(request) == "heatmap" and request.get("label_info"):
            raise RequestError(
                400, "a DICOM SEG holds labels; choose output_kind mask or bands for it."
            )
        tag = label_tag(request, MASK_TAG)
        with self._one_inference:
            asked = {**request, "label_tag": tag, **self._located(request.get("image"), store)}
            return dict(super().infer(asked, store))

    def infer_wsi(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Refuse pathology slides: no model here is for them."""
        raise RequestError(400, "no model here is for pathology slides; use /infer/MODEL.")

    @one_line_in_worker
    def batch_infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Masks and heatmaps of many studies; see `AnomalyBatchInfer`."""
        _known("model", request.get("model"), self.tasks)
        return dict(super().batch_infer(request, datastore))

    @one_line_in_worker
    def scoring(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Scores of all studies; see `AnomalyScoring`."""
        _known("scoring method", request.get("method"), self._scoring_methods)
        return dict(super().scoring(request, datastore))

    @one_line_in_worker
    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train a bundle; see `NormalTrainTask`."""
        _known("trainer", request.get("model"), self._trainers)
        return dict(super().train(request))

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The study to look at next; empty where all are labelled."""
        asked = {**request, "strategy": request.get("strategy") or "most_anomalous_first"}
        _known("strategy", asked["strategy"], self._strategies)
        self.datastore().refresh()  # scores come from another process
        return dict(super().next_sample(asked))

    def async_scoring(self, method: str | None, params: Any = None) -> Any:
        """Score in the background.

        MONAI Label starts all methods, those of `method` None, after its own start, a training and
        every sample. They run where studies have no score yet, and only on a folder: scoring a
        server downloads it, so that needs a request.
        """
        if method:
            return super().async_scoring(method, params)
        store = self.datastore()
        if isinstance(store, DICOMWebDatastore) or not isinstance(store, LocalDatastore):
            return {}
        methods = self._scoring_methods.items()
        ready = [name for name, m in methods if m.task.is_valid() and m.pending(store)]
        return {name: super(MCMIADApp, self).async_scoring(name, params) for name in ready}

    def _located(self, image: Any, store: Any) -> dict[str, Any]:
        """Path, name and DICOM modality of the image of a request."""
        if not isinstance(image, str) or not image:
            raise RequestError(
                400, "no image was given: name one of the datastore, send a file or a session."
            )
        path = Path(image)
        if path.is_absolute() and path.exists() and self._may_read(path):
            # the last two are never taken from a client
            return {"image": image, "case": path.name, "dicom_modality": None, "dicom_series": None}
        try:
            known = _image_file(store, image)
        except RequestError:
            raise
        except (IndexError, KeyError, ImageNotFoundException):
            known = ""
        except OSError as error:  # so are all errors of a connection
            raise RequestError(
                502, f"the server of the studies did not give image {image}: {error}"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise RequestError(400, f"image {image} could not be read: {error}") from error
        if not known:
            raise RequestError(
                404, f"there is no image {image!r} in the datastore; /datastore/ lists them."
            )
        code = str(store.get_image_info(image).get("Modality") or "UNK")
        series = known.removesuffix(".nii.gz") if isinstance(store, DICOMWebDatastore) else None
        return {
            "image": image,
            "case": image,
            "dicom_modality": None if code == "UNK" else code,
            "dicom_series": series,
        }

    def _may_read(self, path: Path) -> bool:
        """Whether a client may name this path: uploads, sessions and studies, not any file."""
        if not self._server_mode:
            return True
        roots = [tempfile.gettempdir(), self.studies]
        if self.sessions() is not None:
            roots.append(self.sessions().store_path)
        return any(path.resolve().is_relative_to(Path(root).resolve()) for root in roots)


def _image_file(store: Any, image: str) -> str:
    """Path of an image in the datastore, empty where it is not there."""
    path = str(store.get_image_uri(image))
    if not isinstance(store, DICOMWebDatastore):
        return path
    # the first call leaves a temporary file, and the second gives the path of its copy
    kept = str(store.get_image_uri(image))
    if path != kept:
        Path(path).unlink(missing_ok=True)
    return kept


def _known(what: str, name: Any, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise RequestError(
            404, f"there is no {what} {name!r}; choose one of {', '.join(sorted(known)) or 'none'}."
        )
    return known[name]
