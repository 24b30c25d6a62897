"""Batch inference: the mask and, beside it, the heatmap of every study."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.utils.others.generic import remove_file

from mcmiad_monai.monailabel.infer import AnomalyInferTask
from mcmiad_monai.monailabel.requests import RequestError, label_tag, number, output_kind
from mcmiad_monai.monailabel.scoring import Infer, keep_score

logger = logging.getLogger(__name__)

#: Label tag of the heatmaps.
HEATMAP_TAG = "heatmap"
#: Label tag of masks or bands: MONAI Label's name for what a model made.
MASK_TAG = "original"


class AnomalyBatchInfer(BatchInferTask):
    """Run a bundle over the datastore, one study after the other; no GPU is needed.

    Each study gets two labels: mask or bands under ``label_tag`` (``original``), and the float
    heatmap under ``heatmap``. Its score is kept with the image. A study that fails is reported and
    does not stop the others.

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
            ``max_batch_size`` limits their number. Other parameters are those of an inference;
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
        # the type is that of the labels: a heatmap is stored as one
        kind, tag = output_kind({**request, "result_dtype": None}), label_tag(request, MASK_TAG)
        wanted = {tag: kind, HEATMAP_TAG: "heatmap"}
        if kind == "heatmap":  # under the tag of masks it would be taken for one
            wanted = {HEATMAP_TAG if tag == MASK_TAG else tag: kind}
        images = sorted(self.get_images(dict(request), datastore))
        if limit := number({"n": request.get("max_batch_size") or None}, "n", int, above=0):
            images = images[:limit]
        passed = {k: v for k, v in request.items() if k not in ("images", "label_tag")}
        result: dict[str, Any] = {}
        failed: list[str] = []
        for done, image in enumerate(images, 1):
            try:
                for label, output in wanted.items():
                    asked = {"output_kind": output, "label_tag": label, "save_label": True}
                    if output == "heatmap":
                        asked["result_dtype"] = None
                    answer = infer({**passed, "image": image, **asked}, datastore)
                    remove_file(answer["file"])
            except Exception as error:
                failed.append(str(getattr(error, "detail", error)))
                result[image] = {"error": failed[-1]}
                # the answer has the message, which can name a file, and so a patient
                logger.warning("study %d failed: %s", done, type(error).__name__)
            else:
                params = dict(answer["params"])
                result[image] = {"labels": list(wanted), "params": params}
                keep_score(datastore, image, self.tasks[request["model"]], params)
            logger.info("%d of %d studies", done, len(images))
        logger.info("%d studies done, %d failed", len(images) - len(failed), len(failed))
        if images and len(failed) == len(images):
            raise RequestError(400, f"every study failed; the first: {failed[0]}")
        return result
