"""Why files of a source are not read by `find_cases`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mcmiad_monai.data.cases.datalist import DATALIST_NAMES, SPLIT_KEYS, datalist_in
from mcmiad_monai.data.cases.find import Split, find_cases, split_folders
from mcmiad_monai.data.cases.folder import IMAGE_FOLDERS, MASK_FOLDERS, class_folders, is_one_case
from mcmiad_monai.data.cases.names import (
    VOLUME_SUFFIXES,
    Case,
    CaseError,
    is_dicom,
    is_dicom_series,
    is_mask,
    listing,
    suffix_of,
)

SPECIAL_FOLDERS = IMAGE_FOLDERS | MASK_FOLDERS
#: Files that are read with the image of their name: a BIDS sidecar, and the data of MetaImage.
COMPANIONS = {".json": VOLUME_SUFFIXES, ".raw": (".mhd",), ".zraw": (".mhd",)}


def explain(
    source: str | Path, split: Split = "all", *, image_name: str | None = None
) -> dict[Path, str]:
    """Files of a folder that `find_cases` does not read, each with the reason.

    Parameters
    ----------
    source, split, image_name
        As for :func:`~mcmiad_monai.data.cases.find.find_cases`.

    Returns
    -------
    dict
        Path → reason, sorted by path; empty for a source that is one file.

    Raises
    ------
    CaseError
        As ``find_cases``.
    """
    root = _absolute(Path(source).expanduser())
    read = _files(find_cases(root, split, image_name=image_name))
    if not root.is_dir():
        return {}
    try:
        in_any_split = _files(find_cases(root, image_name=image_name))
    except CaseError:
        in_any_split = set()
    return {
        path: f"not in the split {split}" if _is_read(path, in_any_split) else reason
        for path, reason in _files_with_reasons(root, image_name)
        if not _is_read(path, read)
    }


def _files(cases: list[Case]) -> set[Path]:
    """Files of cases, and folders of their DICOM series."""
    keys = ("image", "label", "organ")
    return {_absolute(Path(case[key])) for case in cases for key in keys if case.get(key)}


def _absolute(path: Path) -> Path:
    """The path without dots; links are kept as they are."""
    return Path(os.path.normpath(path.absolute()))


def _is_read(path: Path, read: set[Path]) -> bool:
    """Whether a file is one of a case, or is read together with one."""
    companion_of = COMPANIONS.get(path.suffix.lower(), ())
    beside = {path.with_name(path.stem + suffix) for suffix in companion_of}
    return path in read or bool(beside & read) or (path.parent in read and is_dicom(path))


def _files_with_reasons(root: Path, image_name: str | None) -> Iterator[tuple[Path, str]]:
    """Every file below a source, and why it is not read if it is in no case."""
    datalist, splits = datalist_in(root), list(split_folders(root).values())
    if datalist is None and not splits:
        yield from _below(root, image_name)
        return
    why = f"outside of {listing(splits)}"
    if datalist is not None:
        why, splits = f"not listed in {datalist.name}", []
    for entry in sorted(root.iterdir()):
        if entry != datalist:
            yield from _entry(entry, None if entry in splits else why, image_name, child=False)


def _below(
    folder: Path, image_name: str | None, why: str | None = None, *, child: bool = False
) -> Iterator[tuple[Path, str]]:
    """Files below a folder; the folder is read as `find_in_folder` does, or as one of its children.

    Parameters
    ----------
    why : str, optional
        Why nothing in the folder is read.
    """
    classes = [path for path, _ in class_folders(folder)]
    only_files = child and folder.name.lower() in SPECIAL_FOLDERS
    one_case = child and not only_files and is_one_case(folder)
    series = not (only_files or one_case or classes) and is_dicom_series(folder)
    for entry in sorted(folder.iterdir()):
        reason = why
        special = entry.is_dir() and entry.name.lower() in SPECIAL_FOLDERS
        if why is not None:
            pass
        elif only_files and (entry.is_dir() or is_dicom(entry)):
            reason = f"of {folder.name}/ only image files are read, no folders and no DICOM"
        elif one_case and entry.is_dir() and not special:
            reason = f"{folder.name}/ is one study; folders inside of it are not read"
        elif series:
            reason = f"{folder.name}/ is one DICOM series"
        elif classes and not (only_files or one_case) and entry not in classes:
            reason = f"beside {listing(classes)}, which alone are read"
        yield from _entry(entry, reason, image_name, child=entry not in classes)


def _entry(
    entry: Path, why: str | None, image_name: str | None, *, child: bool
) -> Iterator[tuple[Path, str]]:
    """A file, or the files of a folder; `why` is a reason that holds for all of it."""
    if entry.name.startswith("."):
        why = "hidden"
    if entry.is_dir():
        yield from _below(entry, image_name, why, child=child)
    else:
        yield entry, _reason(entry, why, image_name)


def _reason(path: Path, why: str | None, image_name: str | None) -> str:
    """Why a file is not read, where it is in no case; `why` is the reason of its folder."""
    if why != "hidden" and path.name in DATALIST_NAMES:
        keys = ", ".join(key for keys in SPLIT_KEYS.values() for key in keys)
        return f"no datalist at the top of the source with a list under any of {keys}"
    if why != "hidden" and not suffix_of(path) and not is_dicom(path):
        return "no image: neither a known suffix nor DICOM"
    if why is not None:
        return why
    if is_mask(path) or path.parent.name.lower() in MASK_FOLDERS:
        return "a mask without an image in its folder"
    return f"its name lacks the word {image_name}"
