"""What a file is, by its name: image, lesion mask, DICOM slice; and the words of a name."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from mcmiad_monai.errors import CONTROL

# A case as the transforms take it: "case", "image", "label" and "anomalous", and, where they are
# known, "patient", "organ" (path of the mask of the organ to look in) and "modality".
Case = dict[str, Any]

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha", ".mhd")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IMAGE_SUFFIXES = VOLUME_SUFFIXES + PICTURE_SUFFIXES
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
# A file is a mask if its name ends in one of these words.
MASK_WORDS = frozenset(
    {"mask", "masks", "label", "labels", "seg", "segmentation", "segmentations"}
    | {"lesion", "lesions"}
)
# A mask whose name says one of these before its mask words is that of the organ to look in.
ORGAN_WORDS = frozenset({"organ", "liver"})
# Where a DICOM file carries its four letters.
DICOM_MAGIC_OFFSET = 128


#: Longest name in bytes: 255, less the endings and the mark of a file that is being written.
NAME_BYTES = 230
# Names of a cohort's own files, which no study's folder may take.
RESERVED_NAMES = frozenset({"scores.json", "scores.csv", "metrics.json", "studies.csv"})


class CaseError(ValueError):
    """Cases could not be found, or are not what was asked for."""


class MissingSplitError(CaseError):
    """A source does not have the split that was asked for."""


def plain_name(name: str) -> str:
    """The name of a study as one that a folder can have; good names stay as they are.

    Parts of a path are joined by ``_`` without ``.`` and ``..``, control characters become ``_``,
    leading dots go, and what is longer than `NAME_BYTES` ends in a digest of the whole.

    Parameters
    ----------
    name : str
        From a file, a folder, a datalist or a header.
    """
    parts = CONTROL.sub("_", name).replace("\\", "/").split("/")
    plain = "_".join(kept for part in parts if (kept := part.lstrip(".")))
    plain = plain if plain.strip() else "study"
    if plain.lower() in RESERVED_NAMES:
        plain = f"study_{plain}"
    if len(plain.encode()) <= NAME_BYTES:
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain.encode()[: NAME_BYTES - 9].decode(errors='ignore')}_{digest}"


def suffix_of(path: Path) -> str:
    """The image suffix of a path in lower case, ``".nii.gz"`` whole, or ``""`` if it has none."""
    name = path.name.lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """File name without its image or DICOM suffix; folder names keep their dots."""
    suffix = suffix_of(path)
    if not suffix and path.suffix.lower() in DICOM_SUFFIXES:
        suffix = path.suffix
    return path.name[: len(path.name) - len(suffix)]


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, split at anything but letters and digits."""
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def is_mask(path: Path) -> bool:
    """Whether a name ends in a mask word: ``mask.nii.gz``, ``case_seg.nii.gz``."""
    words = words_of(stem_of(path))
    return bool(words) and words[-1] in MASK_WORDS


def is_organ_mask(path: Path) -> bool:
    """Whether a mask is one of an organ: ``liver_mask.nii.gz``, ``case_organ_seg.nii.gz``."""
    words = words_of(stem_of(path))
    while words and words[-1] in MASK_WORDS - {
        "lesion",
        "lesions",
    }:  # those of the liver are not it
        words.pop()
    return is_mask(path) and bool(words) and words[-1] in ORGAN_WORDS


def has_name(path: Path, name: str) -> bool:
    """Whether the words of ``name`` stand side by side in the file's name: ``"flair"``."""
    wanted, found = words_of(name), words_of(stem_of(path))
    starts = range(len(found) - len(wanted) + 1)
    return bool(wanted) and any(found[i : i + len(wanted)] == wanted for i in starts)


def without_mask_words(path: Path) -> str:
    """Stem of a mask without its mask words: ``"case_seg"`` gives ``"case"``, ``"mask"`` ``""``."""
    stem = stem_of(path)
    dropped = MASK_WORDS | ORGAN_WORDS if is_organ_mask(path) else MASK_WORDS
    while (words := words_of(stem)) and words[-1] in dropped:
        stem = stem[: stem.lower().rindex(words[-1])].rstrip("_-. ")
    return stem


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM slice, by its suffix or by the letters ``DICM`` in it."""
    if suffix_of(path) or not path.is_file():
        return False
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with path.open("rb") as stream:
        stream.seek(DICOM_MAGIC_OFFSET)
        return stream.read(4) == b"DICM"


def is_dicom_series(folder: Path) -> bool:
    """Whether a folder directly holds DICOM slices."""
    return any(is_dicom(path) for path in visible(folder))


def visible(folder: Path) -> list[Path]:
    """Entries of a folder in the order of their names, without hidden ones."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in a folder."""
    return [path for path in visible(folder) if path.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """Visible image files directly in a folder, masks among them."""
    return [path for path in visible(folder) if path.is_file() and suffix_of(path)]


def listing(paths: list[Path], limit: int = 12) -> str:
    """Names of paths for a message, shortened."""
    names = [path.name + ("/" if path.is_dir() else "") for path in paths]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
