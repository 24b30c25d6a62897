"""Whole DICOM series on any grid, with the headers that a scanner's have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from enhanced import write_enhanced
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
STUDY, SERIES, FRAME_OF_REFERENCE = "1.2.826.1", "1.2.826.1.7", "1.2.826.1.9"
PATIENT: dict[str, Any] = {
    "PatientID": "P-17",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19500101",
    "PatientSex": "F",
    "PatientAge": "076Y",
    "AccessionNumber": "A-1",
    "StudyID": "S-1",
    "StudyDate": "20260102",
    "StudyTime": "101112",
    "ReferringPhysicianName": "Roe^Richard",
    "StudyDescription": "abdomen",
}


def write_series(
    folder: Path,
    volume: np.ndarray,
    affine: np.ndarray,
    *,
    modality: str = "CT",
    order: Sequence[int] | None = None,
    **changed: Any,
) -> Path:
    """Write slices of a volume (X, Y, Z) of whole numbers with an affine (4, 4) in RAS.

    `order` has the slices in the order of their file names; `changed` has attributes of all of
    them, None for those to leave out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :2] / spacing[:2]
    for number, k in enumerate(range(volume.shape[2]) if order is None else order):
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
        file.SOPInstanceUID = f"{SERIES}.{number + 1}"
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
        file.StudyInstanceUID, file.SeriesInstanceUID = STUDY, SERIES
        file.FrameOfReferenceUID, file.PositionReferenceIndicator = FRAME_OF_REFERENCE, ""
        file.Modality, file.SeriesNumber, file.InstanceNumber = modality, 3, number + 1
        file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        file.Columns, file.Rows = volume.shape[:2]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
        file.RescaleSlope, file.RescaleIntercept = 1, 0
        file.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        file.SliceThickness = float(spacing[2])
        file.ImageOrientationPatient = [round(float(v), 9) for v in axes.T.ravel()]
        place = lps[:3, 3] + k * lps[:3, 2]
        file.ImagePositionPatient = [round(float(v), 6) for v in place]
        file.PixelData = volume[:, :, k].T.astype("<i2").tobytes()
        for name, value in {**PATIENT, **changed}.items():
            if value is not None:
                setattr(file, name, value)
            elif name in file:
                delattr(file, name)
        file.save_as(folder / f"slice_{number:03}.dcm", enforce_file_format=True)
    return folder


def write_frames(
    path: Path, volume: np.ndarray, affine: np.ndarray, order: Sequence[int], **options: Any
) -> Path:
    """Write the same as one enhanced file, whose frames are the slices in an order."""
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = (lps[:3, :2] / spacing[:2]).T.ravel()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = write_enhanced(
        path,
        np.stack([volume[:, :, k].T for k in order]).astype("<i2"),
        [lps[:3, 3] + k * lps[:3, 2] for k in order],
        axes=[axes for _ in order],
        spacing=(float(spacing[0]), float(spacing[1])),
        **options,
    )
    file.StudyInstanceUID, file.SeriesInstanceUID = STUDY, SERIES
    file.FrameOfReferenceUID = FRAME_OF_REFERENCE
    for name, value in PATIENT.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path
