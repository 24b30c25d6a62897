"""Heatmaps and masks as files: NIfTI for volumes, TIFF and PNG for pictures; each whole or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcmiad_monai.data.cases.names import plain_name
from mcmiad_monai.files.writing import only_writer, replace_atomically, replace_together
from mcmiad_monai.inference.blend import blend
from mcmiad_monai.inference.placement import VIEWER_HEATMAP, placed_image, upright_copy
from mcmiad_monai.transforms.metadata import NIFTI_HEADER, PICTURE

#: Level of ISA-L's deflate: a heatmap is smaller than with zlib's level 3, in a tenth of the time
#: (``benchmarks/deflate.py``).
GZIP_LEVEL = 1
#: Endings of the files of a volume and of a picture, beside ``scores.json``.
VOLUME_FILES = ("heatmap.nii.gz", "mask.nii.gz")
PICTURE_FILES = ("heatmap.tiff", "mask.png", "overlay.png")
#: Of the DICOM objects that there may be beside them.
DICOM_FILES = ("seg.dcm", "pmap.dcm", "sr.dcm", "sc.dcm")
#: Writes a file of which it is given the path.
Write = Callable[[Path], Any]


class StudyExistsError(ValueError):
    """A result would take the place of another study's, or would lie outside the output folder."""


def write_nifti(
    path: str | Path, array: NDArray[Any], affine: NDArray[np.float64], header: Any = None
) -> None:
    """Write an array as it stands, in its own type; axes of length one are kept.

    Parameters
    ----------
    path : path
        Ends in ``.nii.gz``.
    array : (X, Y, Z) ndarray
        Heatmap or mask.
    affine : (4, 4) ndarray
        In RAS millimetres; sheared ones are kept.
    header : (348,) array of uint8, optional
        Of the study, if it was NIfTI; see `placed_image`.
    """
    replace_atomically(path, _nifti_write(array, affine, header))


def _nifti_write(array: NDArray[Any], affine: NDArray[np.float64], header: Any) -> Write:
    if array.ndim != 3:
        raise ValueError(
            f"an array of shape {array.shape} is no heatmap or mask; (X, Y, Z) is needed."
        )
    return partial(_write_gzip, placed_image(array, affine, header))


def _write_gzip(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image compressed, the same bytes whenever and under whatever name."""
    with path.open("wb") as file:
        packed = igzip.IGzipFile("", "wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0)
        with packed:
            image.to_stream(packed)


def write_study(
    out: Path,
    scores: Mapping[str, Any],
    heatmap: MetaTensor,
    mask: Tensor,
    image: Tensor | None,
    *,
    nifti: bool = True,
    more: Mapping[str, Write | None] | None = None,
) -> Path:
    """Write the files of one study into a folder of its name below `out`.

    Files of an earlier result of the study that this one does not have are removed.

    Parameters
    ----------
    scores : mapping
        See `study_scores`; written last, so that a study with scores is complete. ``input`` is
        the digest of what the study was read from.
    heatmap, mask : (1, X, Y, Z) tensors
        On the study's grid.
    image : (1, W, H, 1) tensor, of colours (3, W, H, 1), or None
        Of a study that was a picture, which then comes back as pictures.
    nifti : bool
        Write heatmap and mask; otherwise the scores and what is under `more` alone.
    more : mapping, optional
        Ending of a file, such as ``"seg.dcm"`` → what writes it, None for no such file.

    Raises
    ------
    StudyExistsError
        If the folder holds the result of another input, is a link, or cannot have the name.
    """
    name = plain_name(scores["case"])
    if name != scores["case"]:
        raise StudyExistsError(
            f"{scores['case']!r} is no name of a folder below {out}; name the study {name!r}."
        )
    folder = out / name
    if folder.is_symlink():
        raise StudyExistsError(
            f"{folder} is a link to {folder.resolve()}; a folder is needed. Remove the link, or "
            "name another output folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_scores.json"
    with only_writer(folder):
        _check_same_input(path, scores.get("input"))
        others = (*VOLUME_FILES, *DICOM_FILES)
        writes: dict[Path, Write | None] = {folder / f"{name}_{end}": None for end in others}
        if nifti:
            viewer = scores.get(VIEWER_HEATMAP)
            writes |= _image_writes(folder / name, heatmap, mask, image, viewer)
        writes |= {folder / f"{name}_{end}": write for end, write in (more or {}).items()}
        text = json.dumps(scores, indent=1)
        replace_together({**writes, path: lambda file: file.write_text(text, "utf-8")})
    return folder


def _check_same_input(path: Path, digest: str | None) -> None:
    """An earlier result may be replaced if it is of the same input."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")).get("input")
    except FileNotFoundError:
        return
    except (ValueError, AttributeError):
        earlier = "unreadable"
    if earlier != digest:
        raise StudyExistsError(
            f"{path.parent} holds the result of another input of the name {path.parent.name!r}, or "
            "of an earlier version; it is kept. Name another output folder (--out), or move or "
            "delete that folder."
        )


def _image_writes(
    stem: Path, heatmap: MetaTensor, mask: Tensor, image: Tensor | None, viewer: str | None
) -> dict[Path, Write]:
    if image is not None:
        return _picture_writes(
            stem,
            image=picture_of(image.mean(0, keepdim=True)),
            heatmap=picture_of(heatmap),
            mask=picture_of(mask),
        )
    affine, header = heatmap.affine.numpy(), heatmap.meta.get(NIFTI_HEADER)
    writes = {
        Path(f"{stem}_{ending}"): _nifti_write(part[0].numpy(), affine, header)
        for ending, part in zip(VOLUME_FILES, (heatmap, mask), strict=True)
    }
    if viewer:
        copy = upright_copy(heatmap[0].numpy(), affine)
        writes[stem.parent / viewer] = partial(_write_gzip, copy)
    return writes


def is_picture(heatmap: MetaTensor) -> bool:
    """Whether a heatmap (1, X, Y, Z) is of one picture, and not of a stack of pages."""
    return bool(heatmap.meta.get(PICTURE)) and heatmap.shape[3] == 1


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
    replace_together(_picture_writes(Path(stem), image=image, heatmap=heatmap, mask=mask))


def _picture_writes(
    stem: Path, *, image: NDArray[Any], heatmap: NDArray[Any], mask: NDArray[Any]
) -> dict[Path, Write]:
    arrays: tuple[NDArray[Any], ...] = (
        np.ascontiguousarray(heatmap, dtype=np.float32),
        (np.asarray(mask) > 0).astype(np.uint8) * 255,
        blend(image, heatmap),
    )
    return {
        Path(f"{stem}_{ending}"): Image.fromarray(array).save
        for ending, array in zip(PICTURE_FILES, arrays, strict=True)
    }
