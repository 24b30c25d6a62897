"""Heatmaps and masks as files: NIfTI for volumes, TIFF and PNG for pictures; each whole or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcmiad_monai.files import replace_atomically, write_text
from mcmiad_monai.inference.blend import blend

#: Level of ISA-L's deflate: a heatmap is smaller than with zlib's level 3, in a tenth of the time
#: (``benchmarks/deflate.py``).
GZIP_LEVEL = 1


def write_nifti(path: str | Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write an array as it stands, in its own type; axes of length one are kept.

    Parameters
    ----------
    path : path
        Ends in ``.nii.gz``.
    array : (X, Y, Z) ndarray
        Heatmap or mask.
    affine : (4, 4) ndarray
        In RAS millimetres; sheared ones are kept.
    """
    if array.ndim != 3:
        raise ValueError(
            f"an array of shape {array.shape} is no heatmap or mask; (X, Y, Z) is needed."
        )
    image = nib.Nifti1Image(array, affine)
    replace_atomically(path, lambda partial: _write_gzip(image, partial))


def _write_gzip(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image compressed, the same bytes whenever and under whatever name."""
    with path.open("wb") as file:
        packed = igzip.IGzipFile("", "wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0)
        with packed:
            image.to_stream(packed)


def write_study(
    out: Path, scores: Mapping[str, Any], heatmap: MetaTensor, mask: Tensor, image: Tensor | None
) -> Path:
    """Write the files of one study into a folder of its name below `out`.

    Parameters
    ----------
    scores : mapping
        See `study_scores`; written last, so that a study with scores is complete.
    heatmap, mask : (1, X, Y, Z) tensors
        On the study's grid.
    image : (1, W, H, 1) tensor, of colours (3, W, H, 1), or None
        Of a study that was a picture, which then comes back as pictures.
    """
    folder = out / scores["case"]
    stem = folder / scores["case"]
    if image is not None:
        write_pictures(
            stem,
            image=picture_of(image.mean(0, keepdim=True)),
            heatmap=picture_of(heatmap),
            mask=picture_of(mask),
        )
    else:
        affine = heatmap.affine.numpy()
        write_nifti(f"{stem}_heatmap.nii.gz", heatmap[0].numpy(), affine)
        write_nifti(f"{stem}_mask.nii.gz", mask[0].numpy(), affine)
    write_text(f"{stem}_scores.json", json.dumps(scores, indent=1))
    return folder


def picture_of(volume: Tensor) -> NDArray[Any]:
    """Rows and columns (H, W) of a picture that was loaded as a volume (1, W, H, 1).

    Raises
    ------
    ValueError
        If the volume has several slices.
    """
    if volume.ndim != 4 or volume.shape[0] != 1 or volume.shape[3] != 1:
        raise ValueError(f"a volume of shape {tuple(volume.shape)} is no picture (1, W, H, 1).")
    return np.asarray(volume.cpu())[0, :, :, 0].T


def write_pictures(
    stem: str | Path, *, image: NDArray[Any], heatmap: NDArray[Any], mask: NDArray[Any]
) -> None:
    """Write ``_heatmap.tiff`` (float32), ``_mask.png`` (0, 255) and ``_overlay.png``.

    Parameters
    ----------
    stem : path
        To which the endings are added.
    image : (H, W) ndarray
        Grey values from 0 to 1.
    heatmap, mask : (H, W) ndarray
        In units of the threshold, and 0 or 1.
    """
    pictures = {
        "heatmap.tiff": Image.fromarray(np.ascontiguousarray(heatmap, dtype=np.float32)),
        "mask.png": Image.fromarray((np.asarray(mask) > 0).astype(np.uint8) * 255),
        "overlay.png": Image.fromarray(blend(image, heatmap)),
    }
    for ending, picture in pictures.items():
        replace_atomically(f"{stem}_{ending}", picture.save)
