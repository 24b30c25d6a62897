"""Whose study a case is, where BIDS or a DICOM header tells it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mcmiad_monai.data.cases.names import Case, visible
from mcmiad_monai.files.formats import is_dicom

#: A BIDS subject at the beginning of the name of a file or of a folder.
SUBJECT = re.compile(r"(sub-[A-Za-z0-9+]+)(?=[_.]|$)")
#: What anonymised headers have in place of an ID, in lower case.
NO_ID = re.compile(r"[0x]*|anon|anonym(ous|i[sz]ed)?|unk|unknown|none|null|n/?a")


def with_patients(cases: list[Case], source: Path) -> list[Case]:
    """Cases with their ``patient``: of a datalist, a BIDS subject, or a DICOM PatientID, hashed.

    A file beside a DICOM series is of the patient of the series, except at the top of the source.
    """
    known = {i: patient for i, case in enumerate(cases) if (patient := _patient(case, source))}
    series = {cases[i]["image"]: patient for i, patient in known.items()}
    for i, case in enumerate(cases):
        beside = Path(case["image"]).parent
        if beside != source and str(beside) in series:
            known.setdefault(i, series[str(beside)])
    return [{**case, "patient": known[i]} if i in known else case for i, case in enumerate(cases)]


def hashed_patient(identity: str) -> str:
    """What stands for a patient: only which studies are of the same one matters."""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def patient_of_id(patient_id: str) -> str | None:
    """What stands for the patient of a PatientID; None for that of anonymised headers."""
    identity = patient_id.strip().strip("\0")
    return None if NO_ID.fullmatch(identity.lower()) else hashed_patient(identity)


def _patient(case: Case, source: Path) -> str | None:
    if "refused" in case or case.get("patient"):
        return case.get("patient")
    image = Path(case["image"])
    top = source if source.is_dir() else source.parent
    below = image.relative_to(top).parts if image.is_relative_to(top) else (image.name,)
    subjects = [found[1] for part in reversed(below) if (found := SUBJECT.match(part))]
    if subjects:
        return subjects[0]
    if image.is_dir():
        image = next((path for path in visible(image) if is_dicom(path)), image)
    return _patient_id(image) if is_dicom(image) else None


def _patient_id(path: Path) -> str | None:
    """The hashed PatientID of a DICOM file; None if it has none, or cannot be read."""
    import pydicom

    from mcmiad_monai.transforms.sizes import MAX_VOXELS, check_deflated

    try:
        check_deflated(path, MAX_VOXELS)  # pydicom unpacks all of it
        header = pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=["PatientID"], force=True
        )
    except Exception:  # whatever a damaged file raises; its reading tells
        return None
    return patient_of_id(str(header.get("PatientID", "")))
