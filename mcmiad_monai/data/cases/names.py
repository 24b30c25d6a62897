"""What a file is, by its name: image, lesion mask, DICOM slice; and the words of a name."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

from mcmiad_monai.errors import CONTROL
from mcmiad_monai.files.formats import DICOM_SUFFIXES, is_dicom, suffix_of

# A case as the transforms take it: "case", "image", "label" and "anomalous", and, where they are
# known, "patient", "organ" (path of the mask of the organ to look in) and "modality".
Case = dict[str, Any]

# A file is a mask if its name ends in one of these words.
MASK_WORDS = frozenset(
    {"mask", "masks", "label", "labels", "seg", "segmentation", "segmentations"}
    | {"lesion", "lesions"}
)
# A mask whose name says one of these before its mask words is that of the organ to look in.
ORGAN_WORDS = frozenset({"organ", "liver"})
# What names of our own results end in after the name of a study.
RESULT_ENDINGS = (
    *("_heatmap.nii.gz", "_mask.nii.gz", "_heatmap.tiff"),
    *("_mask.png", "_overlay.png", "_preview.png", "_scores.json"),
    *("_seg.dcm", "_pmap.dcm", "_sr.dcm", "_sc.dcm"),
)

#: Longest name in bytes: 255, less the endings and the mark of a file that is being written.
NAME_BYTES = 230
# Names of a cohort's own files, which no study's folder may take.
RESERVED_NAMES = frozenset(
    {"scores.json", "scores.csv", "metrics.json", "studies.csv", "sent.jsonl"}
)


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


def is_result(path: Path) -> bool:
    """Whether a file is a heatmap, mask, picture or scores of ours: by the scores beside it.

    So is a heatmap in a folder of its study's name without scores, as a killed run leaves it.
    """
    ending = next((end for end in RESULT_ENDINGS if path.name.endswith(end)), None)
    if ending is None:
        return False
    name = path.name.removesuffix(ending)
    if ending.startswith("_heatmap") and path.parent.name == name:
        return True
    try:
        scores = json.loads(path.with_name(f"{name}_scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(scores, dict) and "volume_score" in scores and scores.get("case") == name


def is_dicom_series(folder: Path, at_least: int = 1) -> bool:
    """Whether a folder directly holds so many DICOM slices, beside results of ours."""
    slices = (path for path in visible(folder) if is_dicom(path) and not is_result(path))
    return len(list(islice(slices, at_least))) == at_least


def visible(folder: Path) -> list[Path]:
    """Entries of a folder in the order of their names, without hidden ones."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in a folder."""
    return [path for path in visible(folder) if path.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """Visible image files directly in a folder, masks among them, without our own results."""
    files = [path for path in visible(folder) if suffix_of(path) and path.is_file()]
    return [path for path in files if not is_result(path)]


def listing(paths: list[Path], limit: int = 12) -> str:
    """Names of paths for a message, shortened."""
    names = [path.name + ("/" if path.is_dir() else "") for path in paths]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
