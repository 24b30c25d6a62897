"""Scoring: one anomaly score a study, kept with the image, for "most anomalous first"."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.utils.others.generic import strtobool

from mcmiad_monai.monailabel.infer import AnomalyInferTask
from mcmiad_monai.monailabel.requests import RequestError

logger = logging.getLogger(__name__)

#: Keys of an image's info in the datastore.
SCORE, ANOMALOUS, MODEL = "anomaly_score", "anomalous", "anomaly_model"
SEEN_BY = "anomaly_seen_by"
#: Status of a study that will be refused again; another error may be gone the next time.
UNSUITABLE = 400

Infer = Callable[[dict[str, Any], Any], dict[str, Any]]


class AnomalyScoring(ScoringMethod):
    """Score every image of the datastore with one bundle.

    Images that this model has scored are left out, unless the request says ``force``. An image that
    the model refuses gets no score, does not stop the others, and is not tried again.

    Parameters
    ----------
    name : str
        Of the bundle.
    task : AnomalyInferTask
        The bundle's task.
    infer : callable
        The app's ``infer``.
    """

    def __init__(self, name: str, task: AnomalyInferTask, infer: Infer) -> None:
        super().__init__(f"Anomaly score of each study by {name}, for most anomalous first")
        self.name, self.task, self.infer = name, task, infer

    def pending(self, datastore: Any) -> list[str]:
        """Images that this model has not seen, in order."""
        stamp = self.task.bundle.stamp
        return [
            image
            for image in sorted(datastore.list_images())
            if datastore.get_image_info(image).get(SEEN_BY, {}).get(self.name) != stamp
        ]

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Score what is pending, or everything.

        Returns
        -------
        dict
            Of each image ``anomaly_score`` and ``anomalous``, or ``error``.

        Raises
        ------
        RequestError
            409, if the bundle is not trained.
        """
        if not self.task.is_valid():
            raise RequestError(409, f"{self.name} has no model yet; train it first.")
        everything = strtobool(request.get("force"))
        images = sorted(datastore.list_images()) if everything else self.pending(datastore)
        asked = {"model": self.name, "skip_writer": True, "device": request.get("device")}
        result: dict[str, Any] = {}
        for image in images:
            try:
                answer = self.infer({**asked, "image": image}, datastore)["params"]
            except Exception as error:
                result[image] = {"error": str(getattr(error, "detail", error))}
                # the answer has the message, which can name a file, and so a patient
                logger.warning("no score: %s", type(error).__name__)
                if getattr(error, "status_code", None) == UNSUITABLE:
                    keep_score(datastore, image, self.task, None)
            else:
                result[image] = _outcome(answer)
                keep_score(datastore, image, self.task, answer)
        failed = sum("error" in entry for entry in result.values())
        logger.info("%d images scored, %d refused", len(result) - failed, failed)
        return result


def keep_score(
    datastore: Any, image: str, task: AnomalyInferTask, answer: Mapping[str, Any] | None
) -> None:
    """Store the score of an answer with the image; with None, that the model could give none."""
    datastore.refresh()  # another process may have written since
    info = datastore.get_image_info(image)
    name, stamp = task.bundle.name, task.bundle.stamp
    kept: dict[str, Any] = {SEEN_BY: {**info.get(SEEN_BY, {}), name: stamp}}
    if answer is not None:
        kept |= {**_outcome(answer), MODEL: name}
    elif info.get(MODEL) == name:  # the score of the model before its last training
        kept |= {SCORE: None, ANOMALOUS: None}
    # a series that could not even be fetched is not in the datastore
    with suppress(ImageNotFoundException):
        datastore.update_image_info(image, kept)


def _outcome(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Score and verdict of an answer; None if no slice was scored or the score is no number."""
    score = answer["volume_score"]
    known = answer.get("slices_scored") != 0 and score is not None and math.isfinite(score)
    return {SCORE: score if known else None, ANOMALOUS: answer[ANOMALOUS] if known else None}
