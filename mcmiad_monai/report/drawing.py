"""Heat over grey slices as small pictures, in the colours of the pages."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcmiad_monai.inference.blend import COLOUR_MAP
from mcmiad_monai.report.volumes import Shown

#: Part of the project's colour map that pages use: its dark end looks like the image below.
COLOUR_RANGE = (0.42, 1.0)
#: Opacity of heat above its threshold.
OPACITY = 0.65
#: The colours end at the study's hottest place, between so many thresholds.
SCALE_RANGE = (2.0, 6.0)
#: Grey level up to which a pixel counts as air, and margin around what is no air.
AIR, MARGIN = 24, 0.02


@cache
def colours() -> NDArray[np.uint8]:
    """The colours (256, 3) of heat, from its threshold to the end of the scale."""
    from matplotlib import colormaps

    levels = colormaps[COLOUR_MAP](np.linspace(*COLOUR_RANGE, 256))[:, :3]
    return np.asarray(np.rint(255 * levels), np.uint8)


def scale_end(hottest: float | None) -> float:
    """Thresholds at which the colours of a study end."""
    return round(float(np.clip(hottest or 0.0, *SCALE_RANGE)), 1)


def overlay(grey: NDArray[Any], heat: NDArray[Any], end: float) -> NDArray[np.uint8]:
    """Heat above its threshold over a grey picture.

    Parameters
    ----------
    grey : (H, W) ndarray of uint8
    heat : (H, W) ndarray
        In thresholds.
    end : float
        Where the colours end, in thresholds.

    Returns
    -------
    (H, W, 3) ndarray of uint8
    """
    place = np.clip((heat - 1) / (end - 1), 0, 1)
    colour = colours()[np.asarray(255 * place, np.uint8)].astype(np.float32)
    seen = (OPACITY * np.clip((heat - 0.9) / 0.1, 0, 1))[..., None]
    base = np.asarray(grey, np.float32)[..., None]
    return np.asarray(np.rint(base * (1 - seen) + colour * seen), np.uint8)


def upright(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """A slice (rows, columns) of a volume in RAS order, as radiologists look at it.

    Axial and coronal ones have the patient's right on their left, sagittal ones the front on their
    right.
    """
    plane = np.take(volume, index, axis=axis).T[::-1]
    return plane if axis == 0 else plane[:, ::-1]


def around_body(shown: Shown, axis: int) -> Shown:
    """A study without the air around it in the planes of its slices, with a small margin."""
    seen = shown.heat >= 1
    if shown.image is not None:
        seen |= shown.image > AIR
    part = [slice(None)] * 3
    for other in {0, 1, 2} - {axis}:
        inside = np.flatnonzero(seen.any(axis=tuple({0, 1, 2} - {other})))
        if inside.size:
            margin = int(np.ceil(MARGIN * seen.shape[other]))
            part[other] = slice(max(0, inside[0] - margin), inside[-1] + margin + 1)
    image = None if shown.image is None else shown.image[tuple(part)]
    return replace(shown, heat=shown.heat[tuple(part)], image=image)


def slice_picture(shown: Shown, axis: int, index: int, end: float, *, side: int) -> Image.Image:
    """A slice with its heat, whose longer side has so many pixels."""
    heat = upright(shown.heat, axis, index)
    grey = np.zeros(heat.shape, np.uint8)
    if shown.image is not None:
        grey = upright(shown.image, axis, index)
    across, down = (zoom for i, zoom in enumerate(shown.zooms) if i != axis)
    picture = Image.fromarray(overlay(grey, heat, end))
    width, height = picture.width * across, picture.height * down
    factor = side / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return picture.resize(size, Image.Resampling.LANCZOS)
