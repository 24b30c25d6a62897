"""Batch inference: the mask and, beside it, the heatmap of every study."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.utils.others.generic import remove_file

from mcmiad_monai.monailabel.infer import AnomalyInferTask
from mcmiad_monai.monailabel.requests import (
    OutputKind,
    RequestError,
    label_tag,
    number,
    output_kind,
)
from mcmiad_monai.monailabel.scoring import Infer, keep_score

logger = logging.getLogger(__name__)

#: Label tag of the heatmaps.
HEATMAP_TAG = "heatmap"
#: Label tag of masks or bands, as MONAI Label names what a model made.
MASK_TAG = "original"


class AnomalyBatchInfer(BatchInferTask):
    """Run a bundle over the datastore, one study after the other; no GPU is needed.

    Each study gets two labels: mask or bands under ``label_tag`` (``original``), and the float
    heatmap under ``heatmap``. Its score is kept with the image. A study that fails is reported and
    passed over.

    Parameters
    ----------
    tasks : mapping of str to AnomalyInferTask
        By the name of the bundle.
    """

    def __init__(self, tasks: Mapping[str, AnomalyInferTask]) -> None:
        self.tasks = tasks

    def __call__(self, request: Mapping[str, Any], datastore: Any, infer: Infer) -> dict[str, Any]:
        """Infer and store.

        Parameters
        ----------
        request : mapping
            ``model``; ``images`` is ``all``, ``labeled``, ``unlabeled`` or a list of image ids;
            ``max_batch_size`` stops after so many. What else an inference takes is passed on;
            ``output_kind`` ``heatmap`` stores the heatmap alone, under ``label_tag``.

        Returns
        -------
        dict
            Of each image ``labels`` (tags) and ``params``, or ``error``.

        Raises
        ------
        RequestError
            If the request itself is wrong.
        """
        wanted = _wanted(request)
        images = sorted(self.get_images(dict(request), datastore))
        if limit := number({"n": request.get("max_batch_size") or None}, "n", int, above=0):
            images = images[:limit]
        task = self.tasks[request["model"]]
        passed = {k: v for k, v in request.items() if k not in ("images", "label_tag")}
        result: dict[str, Any] = {}
        failed: list[str] = []
        for done, image in enumerate(images, 1):
            try:
                answer = _infer_and_store({**passed, "image": image}, wanted, datastore, infer)
            except Exception as error:
                failed.append(str(getattr(error, "detail", error)))
                result[image] = {"error": failed[-1]}
                # why is in the answer: a message can name a file, and so a patient
                logger.warning("study %d failed: %s", done, type(error).__name__)
            else:
                result[image] = {"labels": list(wanted), "params": answer}
                keep_score(datastore, image, task, answer)
            logger.info("%d of %d studies", done, len(images))
        logger.info("%d studies done, %d failed", len(images) - len(failed), len(failed))
        if images and len(failed) == len(images):
            raise RequestError(400, f"every study failed; the first: {failed[0]}")
        return result


def _wanted(request: Mapping[str, Any]) -> dict[str, OutputKind]:
    """Label tags, each with what is to be stored under it."""
    kind, tag = output_kind(request), label_tag(request, MASK_TAG)
    if kind == "heatmap":  # under the tag of masks it would be taken for one
        return {HEATMAP_TAG if tag == MASK_TAG else tag: kind}
    return {tag: kind, HEATMAP_TAG: "heatmap"}


def _infer_and_store(
    request: Mapping[str, Any], wanted: Mapping[str, OutputKind], datastore: Any, infer: Infer
) -> dict[str, Any]:
    """Store all that is wanted of one study; returns the JSON answer."""
    answer: dict[str, Any] = {}
    for tag, kind in wanted.items():
        asked = {"output_kind": kind, "label_tag": tag, "save_label": True}
        answer = infer({**request, **asked}, datastore)
        remove_file(answer["file"])
    return dict(answer["params"])
