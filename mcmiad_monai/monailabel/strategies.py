"""Which study to look at next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.strategy import Strategy

from mcmiad_monai.monailabel.scoring import ANOMALOUS, SCORE


class MostAnomalousFirst(Strategy):
    """The study without a final label whose score is highest.

    Studies without a score come first, since nobody can say that they are normal; equal scores are
    ordered by name.
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
        infos = {image: datastore.get_image_info(image) for image in images}

        def order(image: str) -> tuple[float, str]:
            score = infos[image].get(SCORE)
            known = isinstance(score, int | float) and math.isfinite(score)
            return -score if known else -math.inf, image

        chosen = min(images, key=order)
        return {"id": chosen, **{key: infos[chosen].get(key) for key in (SCORE, ANOMALOUS)}}
