"""The page of a picture: a grey picture with its heat, which the browser colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcmiad_monai.inference.overlay import OverlayError
from mcmiad_monai.inference.writers import picture_of
from mcmiad_monai.report.drawing import overlay
from mcmiad_monai.report.packing import HEAT_LIMIT, base64, webp_address
from mcmiad_monai.report.volumes import windowed
from mcmiad_monai.transforms import load_heatmap, load_volume

#: Longer side of a picture in its page, in pixels.
PICTURE_SIDE = 1400
#: Longer side of its heat.
HEAT_SIDE = 512

Array = NDArray[Any]


def load_picture(heatmap: Path, image: Path | None) -> tuple[Array, NDArray[np.uint8] | None]:
    """Heat (H, W) in thresholds, and grey levels (H, W) where the image is there.

    Raises
    ------
    OverlayError
        If the image has another size.
    """
    heat = picture_of(load_heatmap(heatmap))
    if image is None:
        return heat, None
    grey = windowed(picture_of(load_volume(image)))
    if grey.shape != heat.shape:
        raise OverlayError(
            f"the image {grey.shape} has another size than its heatmap {heat.shape}; name the "
            "source that the heatmap was made from."
        )
    return heat, grey


def picture_overlay(heat: Array, grey: Array | None, end: float) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with its heat; on black where there is no image."""
    return overlay(np.zeros(heat.shape, np.uint8) if grey is None else grey, heat, end)


def picture_data(heat: Array, grey: Array | None) -> dict[str, Any]:
    """What the page of a picture holds: image as WebP, heat as bytes (h, w)."""
    height, width = heat.shape
    base = Image.new("L", (width, height)) if grey is None else Image.fromarray(grey)
    base.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    limit = max(1.0, min(float(heat.max(initial=0)), HEAT_LIMIT))
    small = Image.fromarray(np.asarray(heat, np.float32))
    small.thumbnail((HEAT_SIDE, HEAT_SIDE), Image.Resampling.BILINEAR)
    levels = np.asarray(np.rint(np.clip(np.asarray(small) * (255 / limit), 0, 255)), np.uint8)
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return {
        "kind": "picture",
        "image": webp_address(base, quality=90),
        "size": [width, height],
        "heat": {"bytes": base64(levels.tobytes()), "shape": levels.shape, "limit": limit},
        "hottest": [(int(column) + 0.5) / width, (int(row) + 0.5) / height]
        if heat.max(initial=0) > 0
        else None,
    }
