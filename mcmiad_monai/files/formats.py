"""Which files can be read: finding studies and reading them ask the same functions."""

from __future__ import annotations

import struct
from pathlib import Path

NIBABEL_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = NIBABEL_SUFFIXES + ITK_SUFFIXES
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IMAGE_SUFFIXES = VOLUME_SUFFIXES + PICTURE_SUFFIXES
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
#: Tables of paths that are sources.
LIST_SUFFIXES = (".csv", ".tsv", ".parquet")
#: Suffixes of headers, and those of the data that lie beside them under the same name.
DATA_BESIDE = {".hdr": (".img",), ".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".zraw")}

#: Where a DICOM file carries its four letters.
DICOM_MAGIC_OFFSET = 128
#: Class of the index of a DICOM medium (DICOMDIR), which has no pixels.
DICOM_INDEX = b"1.2.840.10008.1.3.10"
#: Bytes that tell a DICOM file; its class stands within them.
HEAD_BYTES = 512
#: Value representations at the beginning of a DICOM file without preamble.
FIRST_VRS = (b"UL", b"OB", b"UI", b"SH", b"AE", b"CS", b"LO", b"DA", b"TM", b"DT")


def suffix_of(path: Path) -> str:
    """The image suffix of a path in lower case, ``".nii.gz"`` whole, or ``""`` if it has none."""
    name = path.name.lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), "")


def is_address(source: object) -> bool:
    """Whether a source is the address of a DICOMweb archive, or of a series in one."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM slice: by its suffix, its letters ``DICM`` or its first elements.

    The index of a medium (DICOMDIR) is none.
    """
    if suffix_of(path) or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if head[DICOM_MAGIC_OFFSET : DICOM_MAGIC_OFFSET + 4] == b"DICM":
        return DICOM_INDEX + b"\0" not in head and DICOM_INDEX + b" " not in head
    return _begins_with_elements(head)


def _begins_with_elements(head: bytes) -> bool:
    """Whether bytes begin with two elements of DICOM's group 2 or 8, as without a preamble."""
    place, before = 0, (0, -1)
    for _ in range(2):
        if len(head) < place + 12:
            return False
        tag = struct.unpack_from("<HH", head, place)
        if tag[0] not in (2, 8) or tag <= before:
            return False
        vr = head[place + 4 : place + 6]
        if vr == b"OB":
            start, length = place + 12, struct.unpack_from("<I", head, place + 8)[0]
        elif vr in FIRST_VRS:
            start, length = place + 8, struct.unpack_from("<H", head, place + 6)[0]
        else:  # implicit
            start, length = place + 8, struct.unpack_from("<I", head, place + 4)[0]
        place, before = start + length, tag
    return True
