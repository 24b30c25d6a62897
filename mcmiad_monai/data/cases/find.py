"""Finding cases on disk by looking: files, folders, DICOM series, datalists, good/Ungood trees."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np

from mcmiad_monai.data.cases.datalist import DATALIST_NAMES, datalist_in, find_in_datalist
from mcmiad_monai.data.cases.folder import Wanted, class_folders, describe, find_in_folder
from mcmiad_monai.data.cases.lists import is_list, read_list
from mcmiad_monai.data.cases.names import (
    Case,
    CaseError,
    MissingSplitError,
    listing,
    plain_name,
    stem_of,
    subfolders,
)
from mcmiad_monai.data.cases.nnunet import find_in_nnunet, nnunet_folders
from mcmiad_monai.data.cases.patients import with_patients
from mcmiad_monai.files.formats import IMAGE_SUFFIXES, LIST_SUFFIXES, is_dicom, suffix_of

__all__ = ["Case", "CaseError", "Split", "find_cases", "name_uniquely", "split_cases"]

Split = Literal["train", "val", "test", "all"]
# Folder names of each split, in lower case.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def find_cases(
    source: str | Path,
    split: Split = "all",
    *,
    image_name: str | None = None,
    mask_name: str | None = None,
) -> list[Case]:
    """Find the cases of a source, whatever it is.

    A source is one image file, a folder of DICOM slices, a datalist (``.json``), a table of paths
    (``.csv``, ``.parquet``; see `read_list`), or a folder. A
    folder may hold a ``datalist.json`` or ``dataset.json``, which is then followed; ``train``,
    ``val`` and ``test`` folders; ``good`` and ``Ungood`` folders as in BMAD; ``imagesTr`` and
    ``imagesTs`` as in nnU-Net; image files; one folder a case, also as in BIDS; or DICOM series.
    Hidden files and results of `Prediction.save` are passed over.

    A file is a lesion mask if its name ends in the word mask, label, seg, segmentation or lesion,
    or if it lies in a folder of such a name.

    A source without splits is a ``train`` as well as a ``test`` split, whole; it has no ``val``
    split (see ``split_cases``). Of ``good`` and ``Ungood`` folders without splits, ``train`` are
    the good ones.

    Parameters
    ----------
    source : str or Path
        Where to look.
    split : {"train", "val", "test", "all"}
        Which cases.
    image_name : str, optional
        Word that the names of images have, for example ``"flair"`` where a case has several.
    mask_name : str, optional
        The same for masks.

    Returns
    -------
    list of dict
        Cases with the keys ``case`` (unique name), ``image`` (path of a file or a DICOM folder),
        ``label`` (path of the lesion mask or None) and ``anomalous`` (bool where it is known,
        else None); ``patient`` where a datalist, BIDS or a DICOM header tells it; and ``refused``,
        the reason, for a folder in which it is not clear what the case is. Sorted by path, split
        after split; a datalist keeps its order.

    Raises
    ------
    CaseError
        If nothing is found, a path or a listed file does not exist, a split is missing, or all
        cases are refused.
    """
    path = Path(source).expanduser()
    if split not in (*SPLIT_FOLDERS, "all"):
        raise CaseError(f"split {split!r} is not known; choose train, val, test or all.")
    if not path.exists():
        raise CaseError(f"{path} does not exist; {_nearest(path)}.")
    if path.is_file():
        cases = _find_in_file(path, split)
    else:
        cases = _find_in_source_folder(path, split, Wanted(image_name, mask_name))
    return name_uniquely(with_patients(drop_repeated(cases), path))


def split_cases(
    cases: list[Case], fraction: float = 0.2, *, seed: int = 0
) -> tuple[list[Case], list[Case]]:
    """Split cases into training and validation at random, whole patients, at least one each.

    A case without the key ``patient`` is a patient of its own.

    Parameters
    ----------
    cases : list of dict
        Cases of at least two patients.
    fraction : float
        Share of the validation patients, between 0 and 1.
    seed : int
        The same seed and case names give the same split, whatever the order of the cases.

    Returns
    -------
    tuple of list
        Training and validation cases, in the order in which they were given.

    Raises
    ------
    CaseError
        If there are fewer than two patients or the fraction is not between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise CaseError(f"fraction is {fraction}; the validation share lies between 0 and 1.")
    patients = sorted({_patient(case) for case in cases})
    if len(patients) < 2:
        raise CaseError(
            f"{len(cases)} cases of {len(patients)} patients were given; at least 2 patients are "
            "needed to train on one and validate on another. Cases of one DICOM PatientID, or of "
            "one BIDS subject, are of one patient; if they are not, give 'patient' in a datalist."
        )
    count = min(max(round(fraction * len(patients)), 1), len(patients) - 1)
    order = np.random.default_rng(seed).permutation(len(patients))
    chosen = {patients[i] for i in order[:count]}
    train = [case for case in cases if _patient(case) not in chosen]
    return train, [case for case in cases if _patient(case) in chosen]


def _patient(case: Case) -> tuple[str, ...]:
    """What is split as one: the cases of a patient, or a case of which no patient is known."""
    patient = case.get("patient")
    return (str(patient),) if patient else (case["case"], case["image"])


def _find_in_file(path: Path, split: Split) -> list[Case]:
    """A datalist, or one image that is a case by itself."""
    if path.suffix.lower() == ".json":
        return find_in_datalist(path, split)
    if is_list(path):
        return _found(list(read_list(path, split)), path, Wanted())
    if not suffix_of(path) and not is_dicom(path):
        raise CaseError(
            f"{path} is not an image that can be read; files end in "
            f"{', '.join(IMAGE_SUFFIXES)}, are DICOM slices, or list studies "
            f"(.json, {', '.join(LIST_SUFFIXES)})."
        )
    _check_not_val(path, split)
    return [{"case": stem_of(path), "image": str(path), "label": None, "anomalous": None}]


def _find_in_source_folder(folder: Path, split: Split, wanted: Wanted) -> list[Case]:
    """Cases of a folder: by its datalist, by its split folders, or all that is in it."""
    datalist, layout = datalist_in(folder), nnunet_folders(folder)
    if datalist is not None:
        return find_in_datalist(datalist, split)
    if layout:
        if len(layout) == 1:
            _check_not_val(folder, split)
        return _found(find_in_nnunet(layout, split, wanted.image_name), folder, wanted)
    folders = split_folders(folder)
    if folders:
        return _find_in_splits(folder, folders, split, wanted)
    _check_not_val(folder, split)
    cases = _found(find_in_folder(folder, wanted), folder, wanted)
    if split == "train" and class_folders(folder):
        return [case for case in cases if not case["anomalous"]]
    return cases


def split_folders(folder: Path) -> dict[str, Path]:
    """Split folders that a folder has, in the order train, val, test."""
    by_name = {path.name.lower(): path for path in subfolders(folder)}
    return {
        split: by_name[name]
        for split, names in SPLIT_FOLDERS.items()
        for name in names
        if name in by_name
    }


def _find_in_splits(
    folder: Path, folders: dict[str, Path], split: Split, wanted: Wanted
) -> list[Case]:
    """Cases of one split folder, or of all."""
    if split != "all" and split not in folders:
        names = ", ".join(path.name + "/" for path in folders.values())
        raise MissingSplitError(
            f"{folder} has no {split} split; it has {names}. Add a folder {split}/ or choose "
            "another split."
        )
    chosen = list(folders.values()) if split == "all" else [folders[split]]
    return [case for path in chosen for case in _found(find_in_folder(path, wanted), path, wanted)]


def _found(cases: list[Case], folder: Path, wanted: Wanted) -> list[Case]:
    """The cases of a folder or a table, of which one at least must be clear."""
    refused = [case["refused"] for case in cases if "refused" in case]
    if cases and len(refused) == len(cases):
        more = f" {len(refused) - 1} more like it are refused." if len(refused) > 1 else ""
        raise CaseError(f"{refused[0]}{more}")
    if not cases and wanted.image_name is not None:
        raise CaseError(
            f"{folder} has no file named with image_name={wanted.image_name!r}; it holds "
            f"{describe(folder)}. Choose another word (--image-name), or leave it out."
        )
    if not cases:
        raise CaseError(
            f"no images were found in {folder}, which holds {describe(folder)}. Looked for files "
            f"that end in {', '.join(IMAGE_SUFFIXES)}, DICOM series, folders of these, and "
            f"{' or '.join(DATALIST_NAMES)}."
        )
    return cases


def _check_not_val(path: Path, split: Split) -> None:
    """A source without splits has no validation cases."""
    if split == "val":
        raise MissingSplitError(
            f"{path} has no validation split; add a folder val/ beside train/, or divide the "
            "training cases with split_cases."
        )


def _nearest(path: Path) -> str:
    """The nearest existing folder above a missing path and what it holds."""
    parent = next(p for p in path.absolute().parents if p.exists())
    return f"{parent} holds {describe(parent) if parent.is_dir() else listing([parent])}"


def drop_repeated(cases: list[Case]) -> list[Case]:
    """An image that is listed twice is one case."""
    return list({(case["image"], "refused" in case): case for case in cases}.values())


def name_uniquely(cases: list[Case]) -> list[Case]:
    """Put parent folders before names that several cases share, and number those of one folder.

    The names are those of folders, whatever a datalist or a header says; see `plain_name`.
    """
    names = [plain_name(case["case"]) for case in cases]
    parents = [Path(case["image"]).absolute().parts[1:-1] for case in cases]
    for level in range(1, max((len(p) for p in parents), default=0) + 1):
        folders: dict[str, set[tuple[str, ...]]] = {}
        for name, folder in zip(names, parents, strict=True):
            folders.setdefault(name, set()).add(folder)
        for i, name in enumerate(names):
            above = parents[i][-level] if level <= len(parents[i]) else name
            if len(folders[name]) > 1 and above != name:
                names[i] = f"{above}_{name}"
    names = _numbered([plain_name(name) for name in names])
    return [{**case, "case": name} for case, name in zip(cases, names, strict=True)]


def _numbered(names: list[str]) -> list[str]:
    """``a, a, b`` as ``a, a_2, b``."""
    taken: dict[str, None] = {}
    for name in names:
        candidates = (plain_name(f"{name}_{k}") if k > 1 else name for k in count(1))
        taken[next(c for c in candidates if c not in taken)] = None
    return list(taken)
