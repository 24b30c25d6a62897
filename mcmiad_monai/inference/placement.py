"""Heatmaps and masks as NIfTI that readers lay over the study, whichever part of a header they use.

A study in NIfTI lends its own placement: qform, sform, their codes, units and description. Others
get both forms. ITK opens no sheared grid, as of a tilted gantry: there is an upright copy for it.
"""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from monai.data import MetaTensor
from numpy.typing import NDArray

from mcmiad_monai.transforms.metadata import NIFTI_HEADER
from mcmiad_monai.transforms.readers import millimetres

#: Key of a study's scores: name of the upright copy of its heatmap, None where there is none.
VIEWER_HEATMAP = "viewer_heatmap"
#: Fields of a NIfTI header that say where an image lies, and what it is.
PLACEMENT = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units", "descrip"),
)
#: ITK calls axes orthogonal whose cosines are below; it opens no other NIfTI without a qform.
ITK_COSINE = 1e-4
#: How far in voxels a qform, which has no shear, may place a corner from where it is.
QFORM_OFFSET = 0.5


def placed_image(
    array: NDArray[Any], affine: NDArray[np.float64], header: Any = None
) -> nib.Nifti1Image:
    """An image (X, Y, Z) that lies where the study lies.

    Parameters
    ----------
    array : (X, Y, Z) ndarray
    affine : (4, 4) ndarray
        In RAS millimetres; sheared ones are kept.
    header : (348,) array of uint8, optional
        Bytes of the study's own NIfTI header, in which the same affine stands.
    """
    if header is not None:
        lent = nib.Nifti1Header(np.asarray(header, np.uint8).tobytes(), check=False)
        own = nib.Nifti1Header()
        own.set_data_dtype(array.dtype)
        own.set_data_shape(array.shape)
        own["pixdim"][:4] = lent["pixdim"][:4]
        for name in PLACEMENT:
            own[name] = lent[name]
        stands = np.diag([*[millimetres(own)] * 3, 1]) @ own.get_best_affine()
        if np.allclose(stands, affine, rtol=1e-4, atol=1e-3):
            return nib.Nifti1Image(array, None, own)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, int(image.header["sform_code"]))
    ends = np.stack([*np.meshgrid(*[(0, n - 1) for n in array.shape]), np.ones((2, 2, 2))])
    offset = np.linalg.solve(affine, image.get_qform() - affine) @ ends.reshape(4, 8)
    if np.abs(offset).max() > QFORM_OFFSET:
        image.set_qform(affine, 0)
    return image


def needs_upright_copy(heatmap: MetaTensor) -> bool:
    """Whether ITK cannot open the heatmap (1, X, Y, Z) as NIfTI, for its grid is sheared."""
    nothing: NDArray[Any] = np.broadcast_to(np.uint8(0), heatmap.shape[1:])
    affine = heatmap.affine.numpy()
    header = placed_image(nothing, affine, heatmap.meta.get(NIFTI_HEADER)).header
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > ITK_COSINE
    return bool(sheared and header["qform_code"] == 0)


def upright_copy(array: NDArray[Any], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """An array (X, Y, Z) on an orthogonal grid that covers it, by linear interpolation.

    The first axis stays, and so do the planes of the first two.
    """
    axes, lengths = np.linalg.qr(affine[:3, :3])
    step = axes * np.diag(lengths)  # (3, 3), whatever the signs of the decomposition
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in array.shape])).reshape(3, 8)
    corners = np.linalg.solve(step, affine[:3, :3] @ ends)  # in steps from the first voxel
    start = np.floor(corners.min(axis=1) + ITK_COSINE)
    size = np.ceil(corners.max(axis=1) - ITK_COSINE) - start + 1
    upright = np.eye(4)
    upright[:3, :3], upright[:3, 3] = step, affine[:3, 3] + step @ start
    to_source = np.linalg.solve(affine, upright)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_source[:3, :3].ravel().tolist())
    transform.SetTranslation(to_source[:3, 3].tolist())
    source = sitk.GetImageFromArray(np.ascontiguousarray(array.T))  # ITK counts axes from the end
    grid = [(0.0,) * 3, (1.0,) * 3, np.eye(3).ravel().tolist()]  # indices: affines are ours
    copied = sitk.Resample(source, [int(n) for n in size], transform, sitk.sitkLinear, *grid)
    return placed_image(sitk.GetArrayFromImage(copied).T, upright)
