"""DICOM files of one slice each."""

from __future__ import annotations

import locale
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name in its manual)

#: Where columns and rows of the pixels run to, in LPS.
ROW, COLUMN = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])


def write_slice(
    path: Path,
    hounsfield: np.ndarray,
    position: Sequence[float] | np.ndarray,
    *,
    modality: str = "CT",
    image_type: str = "ORIGINAL\\PRIMARY\\AXIAL",
    number: int = 1,
    spacing: tuple[float, float] = (0.75, 1.5),
    patient: str = "",
) -> None:
    """Write a slice of even Hounsfield units, of the series of a number and of a patient's ID."""
    image = sitk.GetImageFromArray(hounsfield.astype("i2"))
    image.SetSpacing(spacing)  # (x, y); the writer makes PixelSpacing of it
    tags = {
        "0008|0060": modality,
        "0008|0008": image_type,
        "0020|000d": "1.2.3",
        "0020|000e": f"1.2.3.{number}",
        "0020|0011": str(number),
        "0008|103e": f"series {number}",
        "0020|0032": "\\".join(f"{v:.6f}" for v in position),
        "0020|0037": "\\".join(f"{v:.6f}" for v in (*ROW, *COLUMN)),
        "0018|0050": "3.0",
        # GDCM makes an enhanced MR of one with an intercept
        "0028|1052": "0" if modality == "MR" else "-1000",
        "0028|1053": "1" if modality == "MR" else "2",
        "0010|0020": patient,
    }
    for key, value in tags.items():
        image.SetMetaData(key, value)
    write_dicom(image, path)


def without_preamble(path: Path) -> None:
    """Turn a DICOM file into one without its preamble, the letters DICM and its suffix."""
    path.with_suffix("").write_bytes(path.read_bytes()[132:])
    path.unlink()


def write_dicom(image: sitk.Image, path: Path) -> None:
    """Write an image with its tags; the locale, which GDCM changes for patients, is as before."""
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
