"""The series below a folder, whatever the files are called; the folder itself is only read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.web import OWN_DESCRIPTION
from mcmiad_monai.errors import escaped
from mcmiad_monai.files.formats import is_dicom
from mcmiad_monai.transforms.sizes import MAX_VOXELS, check_deflated

#: Who makes our own series.
OWN_MANUFACTURER = "mcmiad_monai"
#: Modalities (0008,0060) of series that hold no images to look at, but what was made of some.
NO_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "DOC", "REG", "RWV", "ANN", "FID", "PLAN", "AU", "ECG"}
    | {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTSEGANN"}
)
HEADER = (
    *("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"),
    *("Modality", "SeriesDescription", "Manufacturer"),
)


@dataclass
class Series:
    """Files of one series.

    Attributes
    ----------
    uid, study, modality : str
        Series and Study Instance UID, and the modality of the header.
    passed_over : str
        Why it is no study, if so.
    files : dict of str to Path
        SOP Instance UID → file; an instance that lies there twice is one.
    """

    uid: str
    study: str
    modality: str
    passed_over: str = ""
    files: dict[str, Path] = field(default_factory=dict)


def find_series_below(folder: Path) -> tuple[list[Series], dict[str, int]]:
    """Series of all DICOM files below a folder, in the order of their UIDs.

    Returns
    -------
    list of Series
    dict of str to int
        Reason → how many files were not read for it; hidden ones and those of other kinds are not
        counted.
    """
    found: dict[str, Series] = {}
    unread: dict[str, int] = {}
    for file in _visible_below(folder):
        try:
            header = _header(file)
            uid, instance = str(header.SeriesInstanceUID), str(header.SOPInstanceUID)
        except Exception as error:  # whatever a damaged file raises
            reason = f"no DICOM header with UIDs ({type(error).__name__})"
            unread[reason] = unread.get(reason, 0) + 1
            continue
        if uid not in found:
            study, modality = (
                str(header.get("StudyInstanceUID", "")),
                str(header.get("Modality", "")),
            )
            reason = why_no_study(
                modality, header.get("SeriesDescription", ""), header.get("Manufacturer", "")
            )
            found[uid] = Series(uid, study, modality, reason)
        found[uid].files.setdefault(instance, file)
    return [found[uid] for uid in sorted(found)], unread


def why_no_study(modality: Any, description: Any, manufacturer: Any) -> str:
    """Why a series is none that a model looks at, by its header; empty if it may be one."""
    if (
        str(manufacturer or "").strip() == OWN_MANUFACTURER
        and OWN_DESCRIPTION in str(description or "").lower()
    ):
        return "a result of this program"
    if str(modality) in NO_IMAGES:
        return f"no images ({modality})"
    return ""


def lay_out(files: Iterable[Path], folder: Path) -> Path:
    """A new folder with links to the files of one series, under names that tell nothing."""
    folder.mkdir(parents=True)
    for number, file in enumerate(files, 1):
        (folder / f"{number:06d}.dcm").symlink_to(file.absolute())
    return folder


def _visible_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and is_dicom(path):
            yield path


def _header(file: Path) -> Any:
    import pydicom

    check_deflated(file, MAX_VOXELS)  # pydicom unpacks all of it
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER), force=True)


def shown(uid: str) -> str:
    """A UID of a header, which may hold anything, for a message."""
    return escaped(uid)[:64]
