"""A heatmap laid over a grey image, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The colour scale ends at this many thresholds; what is above is drawn in its last colour.
DEFAULT_SCALE = 2.0
# Below this share of the threshold the heatmap is transparent, at the threshold it is full.
TRANSPARENT_BELOW = 0.4
HEATMAP_OPACITY = 0.85
COLOUR_MAP = "inferno"


def blend(
    image: NDArray[Any], heatmap: NDArray[Any], *, scale: float = DEFAULT_SCALE
) -> NDArray[np.uint8]:
    """Lay a heatmap over an image, pixel by pixel, with a line around what is anomalous.

    Parameters
    ----------
    image : (H, W) array
        Grey values from 0 to 1.
    heatmap : (H, W) array
        In units of its threshold.
    scale : float
        The colours end at this many thresholds.

    Returns
    -------
    (H, W, 3) array of uint8
        RGB.
    """
    from matplotlib import colormaps
    from scipy.ndimage import binary_erosion

    grey = np.clip(np.asarray(image, dtype=np.float64), 0, 1)[..., None]
    colours = colormaps[COLOUR_MAP](np.clip(heatmap / scale, 0, 1))[..., :3]
    seen = opacity(np.asarray(heatmap))[..., None]
    picture = grey * (1 - seen) + colours * seen
    anomalous = np.asarray(heatmap) > 1
    picture[anomalous & ~binary_erosion(anomalous)] = 1.0
    return np.asarray(np.rint(picture * 255), dtype=np.uint8)


def opacity(relative: NDArray[Any]) -> NDArray[np.float64]:
    """Opacity of a heatmap (H, W) that is in units of its threshold, from 0 to 1."""
    seen = np.clip((relative - TRANSPARENT_BELOW) / (1.0 - TRANSPARENT_BELOW), 0.0, 1.0)
    return np.asarray(seen * HEATMAP_OPACITY)
