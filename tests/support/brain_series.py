"""Small MR series of phantoms, each with UIDs of its own, and the small model for them."""

from __future__ import annotations

from pathlib import Path

import pydicom
from dicom_series import write_series
from stressed import make_model

from mcmiad_monai.bundle import copy_bundle
from mcmiad_monai.phantom.brain import make_phantom

SHAPE = (40, 48, 8)


def write_brain(
    folder: Path,
    number: int,
    *,
    modality: str = "MR",
    shape: tuple[int, int, int] = SHAPE,
    **changed: object,
) -> Path:
    """Write the series ``1.2.40.<number>`` of a phantom with a lesion."""
    phantom = make_phantom(600 + number, lesion="mass", shape=shape, orientation="LPS")
    uid = f"1.2.40.{number}"
    ids = {"SeriesInstanceUID": uid, "StudyInstanceUID": f"1.2.41.{number}"}
    ids |= {"PatientID": f"P{number}", "PatientName": "Secret^Name", "SeriesNumber": number}
    write_series(folder, phantom.image, phantom.affine, modality=modality, **(ids | changed))
    for k, file in enumerate(sorted(folder.iterdir())):
        header = pydicom.dcmread(file)
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{k}"
        header.save_as(file)
    return folder


def small_bundle(folder: Path) -> Path:
    """A bundle of the brain with a small model of random weights."""
    bundle = copy_bundle("brain_mri_anomaly", folder)
    make_model(bundle / "models" / "model.pt", slice_range=(0.0, 1.0))
    return bundle
