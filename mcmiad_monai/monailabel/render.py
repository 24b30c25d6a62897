"""From a heatmap to the volume of an answer: mask, severity bands or the heatmap itself, as a file.

Files keep the study's affine, also a sheared one: NIfTI in its sform, NRRD and MetaImage in ITK's
three free axis vectors.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name in its manual)
from numpy.typing import NDArray

from mcmiad_monai.files.writing import replace_atomically
from mcmiad_monai.inference.bands import LABELS, labels_of
from mcmiad_monai.inference.placement import placed_image
from mcmiad_monai.monailabel.requests import OutputKind

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def render(
    heatmap: NDArray[np.float32], kind: OutputKind, *, threshold: float, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The volume (X, Y, Z) of an answer.

    Parameters
    ----------
    heatmap : (X, Y, Z) ndarray of float32
        1.0 is the calibrated pixel threshold.
    kind : {"mask", "bands", "heatmap"}
        1 above the threshold; 1, 2, 3 above 1, 2, 4 times the threshold; or the heatmap as it is.
    threshold : float
        In units of the heatmap.
    dtype : numpy dtype
        Of mask and bands; a heatmap stays float32.
    """
    if kind == "heatmap":
        return heatmap
    return labels_of(heatmap, threshold=threshold, bands=kind == "bands", dtype=dtype)


def label_names(volume: NDArray[Any], kind: OutputKind) -> dict[str, int]:
    """Names of the labels that a volume has: viewers give names to segments in their order."""
    present = () if kind == "heatmap" else np.unique(volume)
    return {name: value for value, name in LABELS.items() if value in present}


def write_volume(
    volume: NDArray[Any],
    affine: NDArray[np.float64],
    extension: str,
    *,
    compress: bool = False,
    header: Any = None,
) -> Path:
    """Write a volume (X, Y, Z) to a new temporary file, which is the caller's to remove.

    Parameters
    ----------
    affine : (4, 4) ndarray
        Voxel indices to millimetres in RAS.
    extension : str
        One of :data:`~mcmiad_monai.monailabel.requests.EXTENSIONS`.
    compress : bool
        For NRRD and MetaImage; the name of a NIfTI file says it.
    header : (348,) array of uint8, optional
        Of a study that was NIfTI; see `placed_image`.
    """
    with tempfile.NamedTemporaryFile(prefix="mcmiad_", suffix=extension, delete=False) as file:
        path = Path(file.name)
    try:
        if extension in (".nii", ".nii.gz"):
            image = placed_image(volume, affine, header)
            replace_atomically(path, lambda partial: nib.save(image, partial))
        else:
            itk = _itk_image(volume, affine)
            replace_atomically(path, lambda partial: sitk.WriteImage(itk, str(partial), compress))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _itk_image(volume: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))  # ITK counts axes from the end
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)  # (3,)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image
