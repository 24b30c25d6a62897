"""Volumes and pictures as text in a page: WebP of grey slices, packed NIfTI of heat."""

from __future__ import annotations

import gzip
import io
import math
from base64 import b64encode
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcmiad_monai.report.volumes import Shown, header_bytes, shrink, steps_to_fit

#: Bytes of a page, at most, and of image and heat in it: the rest is NiiVue, montage and figures.
PAGE_BYTES = 4_000_000
VOLUME_BYTES = 1_450_000
#: Voxels of the image and of the heat that a page holds: those of heat are interpolated anyway.
IMAGE_VOXELS, HEAT_VOXELS = 1 << 24, 1_500_000
#: Share of the bytes that heat may take.
HEAT_SHARE = 0.5
#: Qualities of WebP that are tried before the image is made smaller.
QUALITIES = (85, 75, 60)
#: Side of a WebP picture.
WEBP_SIDE = 16383
#: Heat is kept up to so many thresholds, in 255 steps; what is above is shown as that.
HEAT_LIMIT = 8.0


def base64(content: bytes) -> str:
    """Bytes as text."""
    return b64encode(content).decode()


def webp(picture: Image.Image, *, quality: int = 80) -> bytes:
    """A picture as WebP, without metadata."""
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=quality, method=3)
    return stream.getvalue()


def webp_address(picture: Image.Image, *, quality: int = 80) -> str:
    """A picture as the address of an ``<img>``."""
    return f"data:image/webp;base64,{base64(webp(picture, quality=quality))}"


def mosaic(volume: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Slices (X, Y) of a volume (X, Y, Z) beside each other, and how many are in a row.

    Rows of the picture are Y, columns X. At most `WEBP_SIDE` pixels a side where it can be.
    """
    x, y, z = volume.shape
    columns = min(z, max(1, WEBP_SIDE // x), max(1, math.ceil(math.sqrt(z * y / x))))
    rows = math.ceil(z / columns)
    tiles = np.zeros((rows * columns, y, x), np.uint8)
    tiles[:z] = volume.transpose(2, 1, 0)
    grid = tiles.reshape(rows, columns, y, x).transpose(0, 2, 1, 3)  # (rows, Y, columns, X)
    return grid.reshape(rows * y, columns * x), columns


def packed_heat(shown: Shown, room: int) -> dict[str, Any]:
    """Heat as a gzipped NIfTI of uint8 in a page, and the size of its blocks.

    Parameters
    ----------
    shown : Shown
    room : int
        Bytes of text, at most; blocks grow until it fits.
    """
    limit = max(1.0, min(float(shown.heat.max(initial=0)), HEAT_LIMIT))
    slope, voxels = limit / 255, HEAT_VOXELS
    while True:
        steps = steps_to_fit(shown.heat.shape, shown.zooms, voxels)
        heat, affine = shrink(shown.heat, shown.affine, steps)
        levels = np.asarray(np.rint(np.clip(heat / slope, 0, 255)), np.uint8)
        header = header_bytes(levels.shape, affine, slope=slope)
        packed = base64(gzip.compress(header + levels.tobytes(order="F"), 9, mtime=0))
        if len(packed) <= room or levels.size <= 1:
            return {"nifti": packed, "steps": steps, "shape": levels.shape, "limit": limit}
        voxels = int(levels.size * 0.8)


def packed_image(shown: Shown, room: int) -> dict[str, Any]:
    """Grey slices as one WebP in a page, with the NIfTI header of the volume that they are.

    Parameters
    ----------
    shown : Shown
        Without an image it is an empty volume, whose ``webp`` is None.
    room : int
        Bytes of text, at most; quality falls, then blocks grow until it fits.
    """
    image, voxels = shown.image, IMAGE_VOXELS
    if image is None:
        image, voxels = np.zeros(shown.heat.shape, np.uint8), HEAT_VOXELS
    while True:
        steps = steps_to_fit(image.shape, shown.zooms, voxels)
        grey, affine = shrink(image, shown.affine, steps)
        levels = np.asarray(np.rint(grey), np.uint8)
        tiles, columns = mosaic(levels)
        content = {
            "header": base64(header_bytes(levels.shape, affine)),
            "shape": levels.shape,
            "steps": steps,
            "columns": columns,
            "mean": round(float(levels.mean()), 2),
            "webp": None,
        }
        if shown.image is None:
            return content
        if max(tiles.shape) <= WEBP_SIDE:
            for quality in QUALITIES:
                packed = base64(webp(Image.fromarray(tiles), quality=quality))
                if len(packed) <= room or levels.size <= 1:
                    return {**content, "webp": packed}
        voxels = int(levels.size * 0.7)
