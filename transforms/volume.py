"""Loading: a path or an image in memory becomes a checked volume (1, X, Y, Z) in RAS mm."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from mcmiad_monai.transforms.checks import (
    VolumeError,
    check_not_label_map,
    check_values,
    raise_label_map,
)
from mcmiad_monai.transforms.in_memory import image_in_memory
from mcmiad_monai.transforms.masks import lesion_of
from mcmiad_monai.transforms.metadata import new_volume, with_metadata_of
from mcmiad_monai.transforms.readers import Image, read_image
from mcmiad_monai.transforms.sizes import MAX_VOXELS

__all__ = [
    "LoadMaskd",
    "LoadVolumed",
    "VolumeError",
    "load_heatmap",
    "load_mask",
    "load_volume",
]

MASK_OFFSET_VOXELS = 0.5
"""How far, in voxels, a corner of a mask may lie from the same corner of its image."""

PathLike = str | os.PathLike[str]
#: What can be loaded: a path, a nibabel image, a MetaTensor, or (array, affine).
Study = Any


def load_volume(
    study: Study, *, keep_colours: bool = False, max_voxels: int = MAX_VOXELS
) -> MetaTensor:
    """Load one image: NIfTI, MGH, NRRD, MetaImage, a picture, or a folder with a DICOM series.

    Parameters
    ----------
    study : path, nibabel image, MetaTensor or (array, affine)
        An image in memory passes the same checks; see `image_in_memory`.
    keep_colours : bool
        Give three channels: those of a picture in colour, or one three times.
    max_voxels : int
        Of the file, by its header: a larger one is refused before it is unpacked.

    Returns
    -------
    MetaTensor
        Volume (1, X, Y, Z), float32, in the units of the file (Hounsfield units for CT), with a
        float64 affine in RAS millimetres; (3, X, Y, Z) with `keep_colours`. A picture is
        (1, W, H, 1), with x to the patient's left and y to the back, in pixels of 1 mm.

    Raises
    ------
    VolumeError
        If the file cannot be read or is no single 3-D image: several time points, colour or complex
        voxels, NaN, no contrast, a label map, a singular affine, uneven DICOM slices.
    """
    if isinstance(study, (str, os.PathLike)):
        source = Path(study).expanduser()
        image = read_image(source, max_voxels)
    else:
        image, source = image_in_memory(study, max_voxels)
    if image.is_label:
        raise_label_map(source, "the intent code of its header says so")
    values = _as_float32(image)
    check_values(values, source)
    check_not_label_map(values, source, picture=image.is_picture)
    if keep_colours:
        grey = np.broadcast_to(values, (3, *values.shape))
        values = grey if image.colours is None else image.colours.astype(np.float32)
    return new_volume(
        values,
        image.affine,
        source,
        picture=image.is_picture,
        dicom_modality=image.dicom_modality,
        nifti_header=image.nifti_header,
    )


def load_mask(
    path: PathLike, *, label: int | None = None, max_voxels: int = MAX_VOXELS
) -> MetaTensor:
    """Load a mask (1, X, Y, Z) as float32 zeros and ones; `lesion_of` says what counts as lesion.

    An empty mask is a good mask, so neither contrast nor grey values are asked for; the geometry
    is checked as for `load_volume`.

    Parameters
    ----------
    path : path
        File, or folder with a DICOM series.
    label : int, optional
        Value of the structure in a mask of many; see `lesion_of` if left.
    max_voxels : int
        See `load_volume`.

    Raises
    ------
    VolumeError
        If the file cannot be read, is no single 3-D volume, or no mask.
    """
    source = Path(path).expanduser()
    image = read_image(source, max_voxels)
    mask = lesion_of(_as_float32(image), source, label).astype(np.float32)
    return new_volume(mask, image.affine, source, picture=image.is_picture)


def load_heatmap(path: PathLike) -> MetaTensor:
    """Load a heatmap (1, X, Y, Z), float32; one that is zero everywhere is a good heatmap.

    Raises
    ------
    VolumeError
        If the file cannot be read, is no single 3-D volume, or has values that are not finite.
    """
    source = Path(path).expanduser()
    image = read_image(source)
    values = _as_float32(image)
    if not np.isfinite(values).all():
        raise VolumeError(f"{source} has NaN or infinite voxels; a heatmap has finite values.")
    return new_volume(values, image.affine, source, picture=image.is_picture)


def _as_float32(image: Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused
        return np.ascontiguousarray(image.values, dtype=np.float32)


class LoadVolumed(MapTransform):
    """Replace paths, or images in memory, under `keys` by their volumes (1, X, Y, Z).

    Parameters
    ----------
    keys : KeysCollection
        Keys of the studies.
    keep_colours : bool
        Give (3, X, Y, Z); see `load_volume`.
    max_voxels : int, optional
        See `load_volume`.
    """

    max_voxels = MAX_VOXELS  # of the class: features on disk are found by what an instance has

    def __init__(
        self, keys: KeysCollection, *, keep_colours: bool = False, max_voxels: int | None = None
    ) -> None:
        super().__init__(keys)
        self.keep_colours = keep_colours
        if max_voxels is not None:
            self.max_voxels = max_voxels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load every key; see `load_volume` for what is refused."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = load_volume(d[key], keep_colours=self.keep_colours, max_voxels=self.max_voxels)
        return d


class LoadMaskd(MapTransform):
    """Replace mask paths by masks (1, X, Y, Z) on the grid of the loaded image.

    A key that is missing or None stands for a healthy study: its mask is all zero. Use this before
    the image is reoriented.

    Parameters
    ----------
    keys : KeysCollection
        Keys of the masks.
    ref_key : str
        Key of the loaded image.
    label : int, optional
        Value of the lesion; see `lesion_of` if left.
    """

    def __init__(
        self, keys: KeysCollection, ref_key: str = "image", *, label: int | None = None
    ) -> None:
        super().__init__(keys)
        self.ref_key, self.label = ref_key, label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load every key.

        Raises
        ------
        VolumeError
            If a mask has another shape than the image or lies elsewhere in the world.
        """
        d = dict(data)
        image = d[self.ref_key]
        for key in self.keys:
            path = d.get(key)
            if path is None:
                d[key] = _empty_mask(image)
            else:
                d[key] = mask_on_grid_of(image, path, label=self.label)
        return d


def _empty_mask(image: MetaTensor) -> MetaTensor:
    return with_metadata_of(torch.zeros((1, *image.shape[1:])), image)


def mask_on_grid_of(image: MetaTensor, path: PathLike, *, label: int | None = None) -> MetaTensor:
    """Load a mask (1, X, Y, Z) that must lie on the grid of an image.

    Raises
    ------
    VolumeError
        If it has another shape than the image or lies elsewhere in the world.
    """
    mask = load_mask(path, label=label, max_voxels=max(MAX_VOXELS, image[0].numel()))
    if mask.shape[1:] != image.shape[1:]:
        raise VolumeError(
            f"{path} has shape {tuple(mask.shape[1:])}, but its image has "
            f"{tuple(image.shape[1:])}; a mask drawn on this image is needed. Resample the mask to "
            "the image's grid, or check that the two belong together."
        )
    offset = _corner_offset(mask, image)
    if offset > MASK_OFFSET_VOXELS:
        raise VolumeError(
            f"{path} has the shape of its image but lies up to {offset:.1f} voxels away from it; "
            "equal affines are needed. Resample the mask to the image's grid, or copy the image's "
            "header to the mask if only the header is wrong."
        )
    located = with_metadata_of(mask.as_tensor(), image)  # one grid, so one affine and one space
    located.meta["filename_or_obj"] = mask.meta["filename_or_obj"]
    return located


def _corner_offset(mask: MetaTensor, image: MetaTensor) -> float:
    """Largest distance of a corner of the mask from that of the image, in image voxels."""
    ends = [(0, size - 1) for size in image.shape[1:]]
    corners = np.stack([*np.meshgrid(*ends), np.ones((2, 2, 2))]).reshape(4, 8)  # (4, 8)
    mask_to_image = np.linalg.solve(image.affine.numpy(), mask.affine.numpy())
    return float(np.abs(mask_to_image @ corners - corners).max())
