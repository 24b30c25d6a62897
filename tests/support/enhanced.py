"""Enhanced DICOM files: frames with functional groups, as pydicom writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dicom_slices import COLUMN, ROW
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

#: SOP classes by modality.
CLASSES = {"CT": "2.1", "MR": "4.1", "OPT": "77.1.5.4"}


def _in(**groups: Any) -> Dataset:
    """Each functional group as a sequence of one item."""
    item = Dataset()
    for name, values in groups.items():
        group = Dataset()
        for key, value in values.items():
            setattr(group, key, value)
        setattr(item, f"{name}Sequence", [group])
    return item


def write_enhanced(
    path: Path,
    stored: np.ndarray,
    positions: Sequence[Sequence[float]] | np.ndarray | None,
    *,
    modality: str = "CT",
    slopes: Sequence[float] = (),
    intercepts: Sequence[float] = (),
    axes: Sequence[np.ndarray] = (),
    spacing: tuple[float, float] = (0.75, 1.5),
    bits: int = 16,
) -> Dataset:
    """Write stored values (n, Y, X); frames without a slope, or axes of their own, share them."""
    n, rows, columns = stored.shape
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{CLASSES[modality]}"
    file.SOPInstanceUID = generate_uid()
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    file.Modality, file.SeriesNumber, file.PatientName = modality, 1, "Doe^Jane"
    file.Rows, file.Columns, file.NumberOfFrames = rows, columns, n
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, bits, bits - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    file.PixelData = stored.astype(stored.dtype.str).tobytes()
    file["PixelData"].VR = "OW"
    shared: dict[str, Any] = {
        "PixelMeasures": {
            "PixelSpacing": list(spacing[::-1]),  # (y, x)
            "SliceThickness": 3.0,
            "SpacingBetweenSlices": 2.5,
        }
    }
    if positions is not None and not axes:
        shared["PlaneOrientation"] = {"ImageOrientationPatient": [*ROW, *COLUMN]}
    if not slopes:
        shared["PixelValueTransformation"] = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    file.SharedFunctionalGroupsSequence = [_in(**shared)]
    frames = []
    for k in range(n):
        own: dict[str, Any] = {"FrameContent": {"StackID": "1", "InStackPositionNumber": k + 1}}
        if positions is not None:
            own["PlanePosition"] = {"ImagePositionPatient": [float(v) for v in positions[k]]}
        if axes:
            own["PlaneOrientation"] = {"ImageOrientationPatient": [float(v) for v in axes[k]]}
        if slopes:
            transform = {"RescaleSlope": slopes[k], "RescaleIntercept": intercepts[k]}
            own["PixelValueTransformation"] = transform
        frames.append(_in(**own))
    file.PerFrameFunctionalGroupsSequence = frames
    file.save_as(path, enforce_file_format=True)
    return file
