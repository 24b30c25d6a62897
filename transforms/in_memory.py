"""Images that are in memory already: nibabel's, MONAI's, or an array with its affine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys

from mcmiad_monai.transforms.checks import VolumeError, check_affine, check_dtype, spatial_shape
from mcmiad_monai.transforms.readers import LPS_TO_RAS, Image, nibabel_image
from mcmiad_monai.transforms.sizes import MAX_VOXELS

#: Stands for the path of an image that has none, in metadata and messages.
UNNAMED = Path("the given image")


def image_in_memory(given: Any, max_voxels: int = MAX_VOXELS) -> tuple[Image, Path]:
    """Voxels and affine of an image in memory, and the path to call it by.

    Parameters
    ----------
    given : nibabel image, MetaTensor or (array, affine)
        A MetaTensor or an array is (X, Y, Z), (X, Y) or, with a channel, (1, X, Y, Z). An affine
        (4, 4) is in RAS millimetres, as nibabel has it.
    max_voxels : int
        Of a nibabel image, whose voxels may still be in its file.

    Raises
    ------
    VolumeError
        If it is none of these, or no single 3-D image.
    """
    if isinstance(given, nib.spatialimages.SpatialImage):
        name = given.get_filename()
        path = UNNAMED if name is None else Path(name)
        return nibabel_image(given, path, lambda: np.asanyarray(given.dataobj), max_voxels), path
    if isinstance(given, MetaTensor):
        path = Path(str(given.meta.get("filename_or_obj", UNNAMED)))
        affine = np.asarray(given.affine.cpu(), dtype=np.float64)
        if given.meta.get(MetaKeys.SPACE) == SpaceKeys.LPS:
            affine = LPS_TO_RAS @ affine
        return _located(given.as_tensor().cpu().numpy(), affine, path), path
    if isinstance(given, tuple) and len(given) == 2:
        values, affine = (np.asarray(part) for part in given)
        return _located(values, affine, UNNAMED), UNNAMED
    raise VolumeError(
        f"a {type(given).__name__} is no image; a path, a nibabel image, a MetaTensor or a tuple "
        "(array, affine) is needed."
    )


def _located(values: np.ndarray[Any, Any], affine: np.ndarray[Any, Any], path: Path) -> Image:
    if affine.shape != (4, 4):
        raise VolumeError(
            f"{path} has an affine of shape {affine.shape}; (4, 4) is needed: voxel indices to "
            "millimetres in RAS."
        )
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    check_dtype(values.dtype, path)
    affine = affine.astype(np.float64)
    check_affine(affine, path)
    return Image(values.reshape(spatial_shape(values.shape, path)), affine)
