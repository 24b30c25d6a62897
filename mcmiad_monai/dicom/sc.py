"""DICOM secondary capture: the hottest slices as a picture in colour."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import highdicom as hd
import numpy as np
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from mcmiad_monai.dicom.identity import NOTE, Identity
from mcmiad_monai.dicom.source import Source
from mcmiad_monai.inference.prediction import Prediction


def secondary_capture(
    source: Source, prediction: Prediction, identity: Identity, *, compact: bool = False
) -> Any:
    """The preview of a prediction, as a Dataset of highdicom; no name of the study is in it.

    Parameters
    ----------
    compact : bool
        Without loss by JPEG-LS; else uncompressed.
    """
    with TemporaryDirectory(prefix="mcmiad_") as folder:
        drawn = prediction.preview(
            Path(folder) / "preview.png", title=prediction.modality, heading=NOTE.capitalize()
        )
        pixels = np.asarray(Image.open(drawn).convert("RGB"))  # (H, W, 3)
    made = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=source.headers[0],
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=JPEGLSLossless if compact else ExplicitVRLittleEndian,
        **identity.instance("sc", "Anomaly montage"),
    )
    made.PatientOrientation = []  # slices and a colour bar have no one orientation
    made.BurnedInAnnotation = "NO"
    header = source.headers[0]
    made.Laterality = header.get("Laterality") or header.get("ImageLaterality")
    return made
