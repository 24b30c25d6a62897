"""Which study to look at next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.strategy import Strategy

from mcmiad_monai.monailabel.scoring import ANOMALOUS, SCORE


class MostAnomalousFirst(Strategy):
    """The study without a final label whose score is highest.

    Studies without a score come after those with one; what is equal goes by the name.
    """

    def __init__(self) -> None:
        super().__init__(
            "Most anomalous first, by the anomaly scores of scoring or batch inference"
        )

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any] | None:
        """Choose an image; None where all are labelled."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        scores = {image: _score(datastore.get_image_info(image)) for image in images}
        chosen = min(images, key=lambda image: (-scores[image], image))
        info = datastore.get_image_info(chosen)
        return {"id": chosen, SCORE: info.get(SCORE), ANOMALOUS: info.get(ANOMALOUS)}


def _score(info: Mapping[str, Any]) -> float:
    """Score of an image; below any other where there is none."""
    score = info.get(SCORE)
    return float(score) if isinstance(score, int | float) else -math.inf
