"""Training in the app: on the studies that users found healthy."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list, name_to_device

from mcmiad_monai.bundle import open_workflow
from mcmiad_monai.errors import unwrap
from mcmiad_monai.files import replace_atomically, write_text
from mcmiad_monai.monailabel.bundles import ServedBundle
from mcmiad_monai.monailabel.normals import Normals, collect_normals
from mcmiad_monai.monailabel.requests import RequestError, number, plain_text
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.training.method import preset

logger = logging.getLogger(__name__)

#: One study to learn from and one, of another patient, to set the thresholds by.
MIN_NORMALS = 2
#: The only lines of the bundle's train.yaml that requests may set: a configuration can execute
#: code.
SETTABLE = ("max_epochs", "learning_rate", "weights", "text_prior")
#: Model files that a training replaces.
PUBLISHED = ("MODEL_CARD.md", "model.pt")


class NormalTrainTask(TrainTask):
    """Train a bundle anew on studies whose final label is empty.

    Studies with corrections are kept out: the method learns from normal images alone, and partial
    labels are no masks to validate by. The new model replaces the old one at the very end, which is
    kept as ``model.previous.pt``; a training that fails changes nothing.

    Parameters
    ----------
    bundle : ServedBundle
    conf : mapping
        Of the server; ``weights`` and ``text_prior`` are defaults of the requests.
    """

    def __init__(self, bundle: ServedBundle, conf: Mapping[str, str] | None = None) -> None:
        super().__init__(f"Train {bundle.name} on studies whose final label is empty")
        self.bundle = bundle
        self.root = bundle.root
        self.conf = {key: value for key, value in (conf or {}).items() if key in SETTABLE}

    def config(self) -> dict[str, Any]:
        """Settings that a client can change, with the bundle's own values."""
        content = yaml.safe_load((self.root / "configs" / "train.yaml").read_text("utf-8"))
        own = {name: content[name] for name in SETTABLE if name in content}
        if own.get("learning_rate", 0) is None:  # which a client would show as text
            own["learning_rate"] = preset(content["preset"]).learning_rate
        return {"device": device_list(), **own, **self.conf}

    def stats(self) -> dict[str, Any]:
        """Figures of the last training in this app."""
        path = self.root / "models" / "train_stats.json"
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Collect the healthy studies, train, and publish the model.

        Parameters
        ----------
        request : mapping
            ``max_epochs``, ``learning_rate``, ``weights``, ``text_prior`` and ``device``.

        Returns
        -------
        dict
            How many studies were used and kept out, and what the new model is.

        Raises
        ------
        RequestError
            400, if a setting is wrong, there are too few healthy studies, or the training fails.
        """
        asked = {
            "max_epochs": number(request, "max_epochs", int, above=0),
            "learning_rate": number(request, "learning_rate", float, above=0),
            "weights": plain_text(request, "weights"),
            "text_prior": plain_text(request, "text_prior"),
        }
        given = {key: value for key, value in asked.items() if value is not None}
        overrides = {**self.conf, **given, "device": name_to_device(request.get("device"))}
        normals = collect_normals(datastore)
        _check_enough(normals)
        work = self.root / "eval" / "label_app"
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="train_", dir=work) as folder:
            try:
                self._train(Path(folder), normals, overrides)
            except Exception as error:
                logger.debug("training failed", exc_info=True)
                message = f"the training failed and the model is as it was: {unwrap(error)}"
                raise RequestError(400, message) from error
            stats = self._publish(Path(folder) / "models", normals)
        logger.info("trained on %d healthy studies, %d kept out", *list(stats.values())[:2])
        return stats

    def _train(self, folder: Path, normals: Normals, overrides: Mapping[str, Any]) -> None:
        datalist = folder / "datalist.json"
        write_text(datalist, json.dumps({"training": normals.cases}, indent=1))
        places = {
            "dataset_dir": str(datalist),
            "ckpt_dir": str(folder / "models"),
            "output_dir": str(folder / "eval"),
            "progress": False,
            "logging_file": False,  # keeps the server's logging
        }
        open_workflow(self.root, "train", {**overrides, **places}).run()

    def _publish(self, made: Path, normals: Normals) -> dict[str, Any]:
        """Replace the model; the model file goes last."""
        detector = load_package(made / "model.pt")
        training = detector.provenance["training"]
        stats = {
            "normal_studies": len(normals.cases),
            "corrected_studies_kept_out": normals.corrected,
            "unreadable_studies_kept_out": normals.unreadable,
            "training_studies": training["training_studies"],
            "validation_studies": training["validation_studies"],
            "epoch": training["best_epoch"],
            "total_epochs": training["max_epochs"],
            "calibration": detector.calibration,
        }
        models = self.root / "models"
        write_text(models / "train_stats.json", json.dumps(stats, indent=1))
        if self.bundle.model_file.is_file():
            _copy(self.bundle.model_file, models / "model.previous.pt")
        for name in PUBLISHED:
            _copy(made / name, models / name)
        return stats


def _check_enough(normals: Normals) -> None:
    patients = {case.get("patient", case["case"]) for case in normals.cases}
    if len(patients) < MIN_NORMALS:
        raise RequestError(
            400,
            f"{len(normals.cases)} studies of {len(patients)} patients are known to be healthy; at "
            f"least {MIN_NORMALS} patients are needed, and 95 for thresholds with a false-positive "
            "rate of 5 %. Submit an empty final label for each healthy study, or set its info "
            f'"normal" to true. {normals.corrected} studies with corrections and '
            f"{normals.unreadable} that could not be read are kept out.",
        )


def _copy(source: Path, target: Path) -> None:
    replace_atomically(target, lambda partial: shutil.copyfile(source, partial))
