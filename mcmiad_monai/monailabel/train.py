"""Training in the app: on the studies that users found healthy."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ignite.engine import Engine, Events
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.train.handler import prepare_stats
from monailabel.utils.others.generic import device_list, name_to_device

from mcmiad_monai.bundle import open_workflow, write_checksums
from mcmiad_monai.errors import unwrap
from mcmiad_monai.files.reading import read_yaml
from mcmiad_monai.files.writing import replace_atomically, write_text
from mcmiad_monai.monailabel.bundles import ServedBundle
from mcmiad_monai.monailabel.normals import Normals, collect_normals
from mcmiad_monai.monailabel.requests import RequestError, choice, number, plain_text
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.training.lock import FolderError, TrainingLock
from mcmiad_monai.training.method import preset
from mcmiad_monai.training.score_choice import score_name

logger = logging.getLogger(__name__)

#: One study to learn from and one, of another patient, to set the thresholds by.
MIN_NORMALS = 2
#: The only lines of the bundle's train.yaml that requests may set: a configuration can execute
#: code.
SETTABLE = ("max_epochs", "learning_rate", "weights", "text_prior")
#: What is trained, of which a request may also choose one: a memory is built in no epoch.
METHODS = ("both", "memory", "head")
STATS = "train_stats.json"
#: Which studies the numbers in a memory stand for; beside the bundle's other figures.
STUDIES = "memory_studies.csv"
#: How long to wait for a look at the figures, which takes the lock for a moment.
LOCK_SECONDS = 2
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
        Of the server; ``weights``, ``text_prior`` and ``method`` are defaults of the requests.
    """

    def __init__(self, bundle: ServedBundle, conf: Mapping[str, str] | None = None) -> None:
        super().__init__(f"Train {bundle.name} on studies whose final label is empty")
        self.bundle = bundle
        self.root = bundle.root
        # of the training that is running
        self.work = bundle.root / "eval" / "label_app" / "training"
        self.conf = {k: v for k, v in (conf or {}).items() if k in (*SETTABLE, "method")}

    def config(self) -> dict[str, Any]:
        """Settings that a client can change, with the bundle's own values."""
        content = self._content()
        own = {name: content[name] for name in SETTABLE if name in content}
        if own.get("learning_rate", 0) is None:  # which a client would show as text
            own["learning_rate"] = preset(content["preset"]).learning_rate
        method = self.conf.get("method", content["method"].get("parts"))
        first = method or preset(content["preset"]).parts
        # clients send the first of a list where the user chose none
        choices = {"method": list(dict.fromkeys((first, *METHODS)))}
        return {"device": device_list(), **own, **self.conf, **choices}

    def stats(self) -> dict[str, Any]:
        """Figures of the training that is running, else of the last one that ended well.

        Keys are those of MONAI Label's own trainers. ``total_time`` is there once the training has
        ended. ``best_metric`` is 1 / (1 + validation loss), as viewers show it as a percentage. A
        training without epochs has neither that nor epochs.
        """
        with suppress(FileNotFoundError):
            running = json.loads((self.work / STATS).read_text("utf-8"))
            try:
                with self._lock(0):  # that training was killed
                    shutil.rmtree(self.work, ignore_errors=True)
            except Timeout:
                return dict(running)
        path = self.root / "models" / STATS
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}

    def _lock(self, seconds: float) -> FileLock:
        """Held while a training is running; a process that is killed lets go of it."""
        self.work.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.work.with_suffix(".lock"), timeout=seconds)

    def _content(self) -> dict[str, Any]:
        return read_yaml(self.root / "configs" / "train.yaml")

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Collect the healthy studies, train, and publish the model.

        Parameters
        ----------
        request : mapping
            ``method`` (``both``, ``memory`` or ``head``), ``max_epochs``, ``learning_rate``,
            ``weights``, ``text_prior`` and ``device``.

        Returns
        -------
        dict
            How many studies were used and kept out, and what the new model is.

        Raises
        ------
        RequestError
            400, if a setting is wrong, there are too few healthy studies, or the training fails;
            409, if the bundle is being trained.
        """
        asked = {
            "max_epochs": number(request, "max_epochs", int, above=0),
            "learning_rate": number(request, "learning_rate", float, above=0),
            "weights": plain_text(request, "weights"),
            "text_prior": plain_text(request, "text_prior"),
            "method": choice({**self.conf, **request}, "method", METHODS),
        }
        given = {key: value for key, value in asked.items() if value is not None}
        overrides = {**self.conf, **given, "device": name_to_device(request.get("device"))}
        if method := overrides.pop("method", None):
            overrides["method#parts"] = method
        normals = collect_normals(datastore)
        _check_enough(normals)
        try:
            with self._lock(LOCK_SECONDS), TrainingLock(self.root / "models"):
                return self._train_and_publish(normals, overrides)
        except Timeout as error:
            message = f"{self.bundle.name} is being trained; wait for its end, or stop it."
            raise RequestError(409, message) from error
        except FolderError as error:
            raise RequestError(409, str(error)) from error

    def _train_and_publish(self, normals: Normals, overrides: Mapping[str, Any]) -> dict[str, Any]:
        shutil.rmtree(self.work, ignore_errors=True)  # of a training that was killed
        started = time.time()
        try:
            self._train(normals, overrides, started)
            stats = self._publish(normals, started)
        except Exception as error:
            logger.debug("training failed", exc_info=True)
            message = f"the training failed and the model is as it was: {unwrap(error)}"
            raise RequestError(400, message) from error
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
        kept_out = stats["corrected_studies_kept_out"]
        logger.info("trained on %d studies, %d kept out", stats["normal_studies"], kept_out)
        return stats

    def _train(self, normals: Normals, overrides: Mapping[str, Any], started: float) -> None:
        datalist = self.work / "datalist.json"
        write_text(datalist, json.dumps({"training": normals.cases}, indent=1))
        stats = {
            "_target_": f"{__name__}.{EpochStats.__name__}",
            "path": str(self.work / STATS),
            "started": started,
            "validator": "@validate#evaluator",
        }
        places = {
            "dataset_dir": str(datalist),
            "ckpt_dir": str(self.work / "models"),
            "output_dir": str(self.work / "eval"),
            "progress": False,
            "logging_file": False,  # keeps the server's logging
            "train#handlers": [*self._content()["train"]["handlers"], stats],
        }
        open_workflow(self.root, "train", {**overrides, **places}).run()

    def _publish(self, normals: Normals, started: float) -> dict[str, Any]:
        """Replace the model; its figures go last."""
        made, models = self.work / "models", self.root / "models"
        detector = load_package(made / "model.pt")
        training = detector.provenance["training"]
        path = self.work / STATS
        # viewers divide by the number of epochs: where there were none, it is left out
        stats = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        stats.pop("current_time", None)
        if "best_epoch" in training:
            stats["best_epoch"] = training["best_epoch"]
        stats |= {
            "total_time": _duration(started),
            "normal_studies": len(normals.cases),
            "corrected_studies_kept_out": normals.corrected,
            "unreadable_studies_kept_out": normals.unreadable,
            "training_studies": training["training_studies"],
            "validation_studies": training["validation_studies"],
            "method": training["method"]["parts"],
            "score": score_name(detector.score.config),
            "calibration": detector.calibration,
        }
        if self.bundle.model_file.is_file():
            _copy(self.bundle.model_file, models / "model.previous.pt")
        for name in PUBLISHED:
            _copy(made / name, models / name)
        kept = self.root / "eval" / STUDIES
        if (self.work / "eval" / STUDIES).is_file():
            _copy(self.work / "eval" / STUDIES, kept)
        else:
            kept.unlink(missing_ok=True)
        write_text(models / STATS, json.dumps(stats, indent=1))
        write_checksums(self.root)
        return dict(stats)


class EpochStats:
    """Write the figures of a training after each epoch, with the keys of MONAI Label's trainers.

    Parameters
    ----------
    path : path
        The JSON file.
    started : float
        Seconds since 1970.
    validator : Engine
        It runs before this handler.
    """

    def __init__(self, path: str | Path, started: float, validator: Any) -> None:
        self.path, self.started, self.validator = Path(path), started, validator

    def attach(self, engine: Engine) -> None:
        """Write at the end of each epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write now."""
        stats = prepare_stats(self.started, engine, self.validator)
        # thresholds and package are made after the last epoch
        stats.pop("total_time", None)
        stats["current_time"] = _duration(self.started)
        loss = -float(stats.pop("best_metric"))  # only normals are trained on
        if math.isfinite(loss):
            stats["best_metric"] = 1 / (1 + loss)
        # JSON has no NaN, and the server fails on one
        plain = json.loads(json.dumps(stats), parse_constant=lambda _: None)
        write_text(self.path, json.dumps(plain, indent=1))


def _duration(started: float) -> str:
    return str(timedelta(seconds=int(time.time() - started)))


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
