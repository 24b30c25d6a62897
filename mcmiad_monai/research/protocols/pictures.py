"""Figure 3: an anomalous test image of each set, its heatmap and its true lesion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor

from mcmiad_monai.data.cases.names import Case
from mcmiad_monai.data.studies import SliceSample, iterate_slices
from mcmiad_monai.inference.montage import MontageRow, montage
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.score import foreground_of
from mcmiad_monai.research.bmad.sets import ImageSet
from mcmiad_monai.research.protocols.tables import title_of

#: Images of each set that are shown.
EACH = 2
#: An uncalibrated model has no threshold: this share of the set's shown pixels is then above 1.
UNCALIBRATED_QUANTILE = 0.98


def figure_3(models: Sequence[tuple[ImageSet, Path]], path: str | Path, *, size: int = 224) -> Path:
    """Draw heatmaps of models, one set each.

    The images are chosen by their masks alone: those of the median and the upper-quartile lesion
    size, so that nothing is picked for its looks.

    Parameters
    ----------
    models : sequence of (ImageSet, path of model.pt)
    path : path
        Picture to write.
    """
    rows: list[MontageRow] = []
    for found, model in models:
        detector = load_package(model)
        transform = found.transform(**detector.image_options)
        samples = typical(found, size, transform, context=detector.context)
        with torch.inference_mode():
            images = torch.stack([s.image for s in samples])  # (n, 1 or 3, S, S)
            heat = detector(images)  # (n, 1, S, S)
        threshold = 1.0 if detector.calibration else float(heat.quantile(UNCALIBRATED_QUANTILE))
        for sample, one in zip(samples, heat * foreground_of(images), strict=True):
            rows.append(
                MontageRow(
                    image=as_volume(sample.image),
                    heatmap=as_volume(one),
                    index=0,
                    title=title_of(found.name),
                    threshold=max(threshold, 1e-12),
                    mask=as_volume(sample.lesion) if found.has_masks else None,
                    oriented=False,
                )
            )
    return montage(rows, path, title="anomalous test images")


def as_volume(picture: Tensor) -> NDArray[Any]:
    """An image (1 or 3, H, W) as a volume (X, Y, 1), as montages take it: the middle channel."""
    volume: NDArray[Any] = picture[len(picture) // 2].T[:, :, None].numpy()
    return volume


def typical(
    found: ImageSet, size: int, transform: Compose, *, context: int = 1
) -> list[SliceSample]:
    """Anomalous test images of median and upper-quartile lesion size; any where no masks are."""
    anomalous: list[Case] = [case for case in found.cases("test") if case["anomalous"]]
    samples = [
        s
        for s in iterate_slices(
            anomalous,
            found.modality,
            size=size,
            min_foreground=0.0,
            context=context,
            transform=transform,
        )
        if bool(s.lesion.any()) or not found.has_masks
    ]
    samples.sort(key=lambda s: (int(s.lesion.sum()), s.case))
    places = {len(samples) // 2, (3 * len(samples)) // 4}
    return [samples[k] for k in sorted(places) if k < len(samples)][:EACH]
