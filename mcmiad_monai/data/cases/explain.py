"""Why files of a source are not read by `find_cases`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mcmiad_monai.data.cases.datalist import DATALIST_NAMES, SPLIT_KEYS, datalist_in
from mcmiad_monai.data.cases.find import Split, find_cases, split_folders
from mcmiad_monai.data.cases.folder import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    beside_series,
    case_folders,
    class_folders,
    is_one_case,
)
from mcmiad_monai.data.cases.names import (
    RESERVED_NAMES,
    Case,
    CaseError,
    is_mask,
    is_result,
    listing,
)
from mcmiad_monai.data.cases.nnunet import IMAGES, masks_of, nnunet_folders
from mcmiad_monai.files.formats import (
    DATA_BESIDE,
    PICTURE_SUFFIXES,
    VOLUME_SUFFIXES,
    is_dicom,
    suffix_of,
)

#: Folders of masks in nnU-Net's layout.
LABELS = {masks_of(Path(name)).name.lower() for name in IMAGES.values()}
SPECIAL_FOLDERS = IMAGE_FOLDERS | MASK_FOLDERS
#: Files that are read with the image of their name: a BIDS sidecar, and the data of a header.
COMPANIONS = {".json": VOLUME_SUFFIXES} | {
    data: tuple(header for header, beside in DATA_BESIDE.items() if data in beside)
    for data in sorted({data for beside in DATA_BESIDE.values() for data in beside})
}
HIDDEN, RESULT = "hidden", "a result of an earlier run"


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
    cases = find_cases(root, split, image_name=image_name)
    read = _files(cases)
    if not root.is_dir():
        return {}
    try:
        in_any_split = read if split == "all" else _files(find_cases(root, image_name=image_name))
    except CaseError:
        in_any_split = set()
    refused = [_absolute(Path(case["image"])) for case in cases if "refused" in case]
    return {
        path: f"not in the split {split}"
        if _is_read(path, in_any_split)
        else _refused_with(path, refused) or reason
        for path, reason in _files_with_reasons(root, image_name)
        if not _is_read(path, read)
    }


def not_read(sources: Sequence[str | Path], *, image_name: str | None = None) -> str | None:
    """One sentence on the files of sources that are in no split, by reason; None if all are read.

    Raises
    ------
    CaseError
        As ``find_cases``.
    """
    reasons: dict[str, list[Path]] = {}
    for source in sources:
        for path, reason in explain(source, image_name=image_name).items():
            if reason != HIDDEN:
                reasons.setdefault(reason, []).append(path)
    results = len(reasons.pop(RESULT, []))
    count = sum(map(len, reasons.values()))
    files = "1 file was" if count == 1 else f"{count} files were"
    told = "; ".join(f"{listing(paths, 3)} ({reason})" for reason, paths in reasons.items())
    sentences = [f"{files} not read: {told}"] if count else []
    sentences += [f"{results} files with results of this program were skipped"] if results else []
    return ". ".join(sentences) or None


def _files(cases: list[Case]) -> set[Path]:
    """Files of cases, and folders of their DICOM series."""
    keys = ("image", "label", "organ")
    clear = [case for case in cases if "refused" not in case]
    return {_absolute(Path(case[key])) for case in clear for key in keys if case.get(key)}


def _refused_with(path: Path, refused: Sequence[Path]) -> str | None:
    """That an image or a mask is of a folder that was refused."""
    folder = next((folder for folder in refused if folder in path.parents), None)
    image = folder is not None and (suffix_of(path) or is_dicom(path)) and not is_result(path)
    return f"of {folder.name}/, which is refused" if folder is not None and image else None


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
    layout = [] if datalist else list(nnunet_folders(root).values())
    splits = [path for path in layout if path != root] or splits
    if datalist is None and not splits:
        yield from _below(root, image_name)
        return
    why = f"outside of {listing(splits)}"
    if datalist is not None:
        why, splits = f"not listed in {datalist.name}", []
    for entry in sorted(root.iterdir()):
        if entry != datalist and not (layout and entry.name in DATALIST_NAMES):
            inside = entry in splits or entry in map(masks_of, layout)
            yield from _entry(entry, None if inside else why, image_name, child=False)


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
    series = not (only_files or one_case or classes) and beside_series(folder)
    cases = case_folders(folder)
    for entry in sorted(folder.iterdir()):
        reason = why
        special = entry.is_dir() and entry.name.lower() in SPECIAL_FOLDERS
        if why is not None:
            pass
        elif only_files and (entry.is_dir() or is_dicom(entry)):
            reason = f"of {folder.name}/ only image files are read, no folders and no DICOM"
        elif one_case and entry.is_dir() and not special:
            reason = f"{folder.name}/ is one study; folders inside of it are not read"
        elif series and suffix_of(entry) in PICTURE_SUFFIXES and not is_mask(entry):
            reason = f"a picture beside the DICOM series of {folder.name}/"
        elif entry.is_dir() and not special and entry not in cases:
            reason = f"{folder.name}/ is a BIDS data set, of which the folders sub-* are read"
        elif classes and not (only_files or one_case) and entry not in classes:
            reason = f"beside {listing(classes)}, which alone are read"
        yield from _entry(entry, reason, image_name, child=entry not in classes)


def _entry(
    entry: Path, why: str | None, image_name: str | None, *, child: bool
) -> Iterator[tuple[Path, str]]:
    """A file, or the files of a folder; `why` is a reason that holds for all of it."""
    if entry.name.startswith("."):
        why = HIDDEN
    if entry.is_dir():
        yield from _below(entry, image_name, why, child=child)
    else:
        yield entry, _reason(entry, why, image_name)


def _reason(path: Path, why: str | None, image_name: str | None) -> str:
    """Why a file is not read, where it is in no case; `why` is the reason of its folder."""
    if why == HIDDEN:
        return HIDDEN
    if reason := _by_itself(path) or why:
        return reason
    if is_mask(path) or path.parent.name.lower() in MASK_FOLDERS | LABELS:
        return "a mask without an image in its folder"
    return f"its name lacks the word {image_name}"


def _by_itself(path: Path) -> str | None:
    """Why a file would be read nowhere; None if it is an image."""
    if path.name in RESERVED_NAMES or is_result(path):
        return RESULT
    if path.name in DATALIST_NAMES:
        keys = ", ".join(key for keys in SPLIT_KEYS.values() for key in keys)
        return f"no datalist at the top of the source with a list under any of {keys}"
    if path.name.upper() == "DICOMDIR":
        return "the index of a DICOM medium, whose slices are looked for themselves"
    if not suffix_of(path) and not is_dicom(path):
        return "no image: neither a known suffix nor DICOM"
    return None
