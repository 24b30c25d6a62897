"""Which studies of a datastore are known to be healthy: the training data of the method."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcmiad_monai.data.cases.patients import hashed_patient
from mcmiad_monai.modality import modality_of_dicom
from mcmiad_monai.transforms import load_mask

logger = logging.getLogger(__name__)

#: Info of an image that says it is healthy, for datastores that cannot hold an empty label.
NORMAL = "normal"


@dataclass
class Normals:
    """Studies that are known to be healthy, and how many were kept out.

    Attributes
    ----------
    cases : list of dict
        Entries of a datalist: ``case``, ``image``, ``anomalous`` (False), and where it is known
        ``patient`` and ``modality``.
    corrected : int
        Studies with something drawn in their final label; they are kept out.
    unreadable : int
        Studies whose label or image cannot be read; also kept out.
    """

    cases: list[dict[str, Any]] = field(default_factory=list)
    corrected: int = 0
    unreadable: int = 0


def collect_normals(datastore: Any) -> Normals:
    """Sort the studies that users have finished.

    A study is healthy if its final label is empty, or if it has no final label and its info says
    ``"normal": true``: a DICOMweb server cannot hold an empty label.
    """
    found = Normals()
    # MONAI Label's own list, which fetches labels that lie on a server, has paths and no ids
    labels = {entry["image"]: entry["label"] for entry in datastore.datalist()}
    for image in sorted(datastore.list_images()):
        info = datastore.get_image_info(image)
        label = labels.get(info.get("path"))
        if label is None and info.get(NORMAL) is not True:
            continue
        try:
            if label is not None and bool((load_mask(label) > 0).any()):
                found.corrected += 1
                continue
            path = datastore.get_image_uri(image)
        except Exception as error:
            # the message can name a file, and so a patient
            logger.warning("a finished study is kept out: %s", type(error).__name__)
            logger.debug("why", exc_info=True)
            found.unreadable += 1
            continue
        found.cases.append(_entry(image, path, info))
    return found


def _entry(image: str, path: str, info: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"case": image, "image": str(Path(path)), "anomalous": False}
    patient = info.get("patient") or info.get("PatientID")
    if patient and patient != "UNK":
        entry["patient"] = hashed_patient(str(patient))
    modality = info.get("modality") or modality_of_dicom(str(info.get("Modality")))
    if modality:
        entry["modality"] = str(modality)
    return entry
