"""Which studies of a source are used for what, by modality and by split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mcmiad_monai.data.cases.datalist import datalist_in
from mcmiad_monai.data.cases.find import (
    Split,
    drop_repeated,
    find_cases,
    name_uniquely,
    split_cases,
)
from mcmiad_monai.data.cases.folder import Wanted, find_in_folder
from mcmiad_monai.data.cases.names import (
    Case,
    CaseError,
    MissingSplitError,
    image_files,
    listing,
    subfolders,
    visible,
)
from mcmiad_monai.files.formats import is_dicom
from mcmiad_monai.modality import MODALITIES, Modality, get_modality, modality_of_folder


def find_studies(
    source: str | Path | Sequence[str | Path],
    split: Split = "all",
    *,
    modality: Modality | str,
    study_modality: str | None = None,
    image_name: str | None = None,
) -> list[Case]:
    """Cases of a source for a model of a modality.

    For a unified model, a folder whose subfolders are named after modalities (``brain_mri``,
    ``liver_ct``, ``retina_oct``, or as BMAD names them) is taken apart, and every case carries its
    modality.

    Parameters
    ----------
    source : path or sequence of path
        Folders, files or datalists; see :func:`~mcmiad_monai.data.cases.find.find_cases`.
    split : {"train", "val", "test", "all"}
        Which cases.
    modality : Modality or str
        Of the model.
    study_modality : str, optional
        Of every study, where the source does not tell.
    image_name : str, optional
        Word in the names of the images, where a case has several; see ``find_cases``.

    Raises
    ------
    CaseError
        As ``find_cases``.
    ValueError
        If the modality is not known.
    """
    sources = [source] if isinstance(source, (str, Path)) else source
    parts = [part for one in sources for part in parts_of(one, modality, study_modality)]
    found = [case for part in parts for case in _cases(part, split, image_name)]
    return name_uniquely(drop_repeated(found)) if len(parts) > 1 else found


def training_splits(
    source: str | Path,
    *,
    fraction: float = 0.2,
    seed: int = 0,
    modality: Modality | str = "brain_mri",
    study_modality: str | None = None,
    image_name: str | None = None,
) -> tuple[list[Case], list[Case]]:
    """Training and validation cases of a source.

    The source's own validation split is used where it has one; otherwise a share of its training
    cases is held out, whole patients at a time, of each modality for itself. All studies of a
    patient are on one side.

    Parameters
    ----------
    source, modality, study_modality, image_name
        See `find_studies`.
    fraction : float
        Share held out where the source has no validation split.
    seed : int
        Seed of the choice.

    Raises
    ------
    CaseError
        As ``find_cases``; or if a split of the source has a patient on both sides.
    """
    train: list[Case] = []
    val: list[Case] = []
    parts = parts_of(source, modality, study_modality)
    splits = [_splits(part, fraction, seed, image_name) for part in parts]
    # a patient whose studies of another modality are trained on is not held out
    trained = _patients([case for kept, _, _ in splits for case in kept])
    for (folder, _), (kept, own_val, chosen) in zip(parts, splits, strict=True):
        held_out = [case for case in chosen if case.get("patient") not in trained]
        if chosen and not held_out:
            raise CaseError(
                f"{folder} cannot be divided: the {len(chosen)} cases that would be held out are "
                "of patients of the training. Add studies of other patients, or a folder val/."
            )
        train += kept + [case for case in chosen if case.get("patient") in trained]
        val += own_val + held_out
    _check_apart(train, val)
    names = [case["case"] for case in name_uniquely(train + val)]
    named = [{**case, "case": name} for case, name in zip(train + val, names, strict=True)]
    return named[: len(train)], named[len(train) :]


def _patients(cases: list[Case]) -> set[str]:
    """Patients that are known."""
    return {str(case["patient"]) for case in cases if case.get("patient")}


def _check_apart(train: list[Case], val: list[Case]) -> None:
    """No patient is on both sides of a split that the source has."""
    both = _patients(train) & _patients(val)
    if both:
        cases = [c for c in train + val if c.get("patient") in both]
        raise CaseError(
            f"{len(both)} patients are in the training as well as in the validation split: "
            f"{listing([Path(case['image']) for case in cases])}. All studies of a patient belong "
            "to one split: move them. If they are of different people, give 'patient' in a "
            "datalist."
        )


#: A place to look in, and the modality of all that lies there, where it is known.
Part = tuple[Path, str | None]


def parts_of(
    source: str | Path, modality: Modality | str, study_modality: str | None = None
) -> list[Part]:
    """Places of a source to look in: itself, or its folders of modalities for a unified model."""
    kind = get_modality(modality) if isinstance(modality, str) else modality
    path = Path(source).expanduser()
    if study_modality is not None:
        if study_modality not in MODALITIES:
            raise ValueError(
                f"study_modality {study_modality!r} is not known; choose one of "
                f"{sorted(MODALITIES)}."
            )
        return [(path, study_modality)]
    if kind.is_unified and path.is_dir() and datalist_in(path) is None:
        named = [(folder, modality_of_folder(folder.name)) for folder in subfolders(path)]
        parts: list[Part] = [(folder, name) for folder, name in named if name is not None]
        if parts:
            _check_no_strays(path, named)
            return parts
    return [(path, None)]


def _check_no_strays(source: Path, named: list[tuple[Path, str | None]]) -> None:
    """Nothing lies beside the folders of modalities, where it would be passed over."""
    strays = [folder for folder, name in named if name is None and find_in_folder(folder, Wanted())]
    strays += [path for path in visible(source) if path in image_files(source) or is_dicom(path)]
    if strays:
        raise CaseError(
            f"{source} has folders named after modalities, and beside them {listing(strays)}, of "
            "which it is not clear what it is. Put every study into a folder of its modality."
        )


def _cases(part: Part, split: Split, image_name: str | None) -> list[Case]:
    folder, modality = part
    found = find_cases(folder, split, image_name=image_name)
    return [_with_modality(case, modality) for case in found]


def _with_modality(case: Case, modality: str | None) -> Case:
    return case if modality is None else {**case, "modality": modality}


def _splits(
    part: Part, fraction: float, seed: int, image_name: str | None
) -> tuple[list[Case], list[Case], list[Case]]:
    """Training cases, validation cases of the source, and those that are held out instead."""
    train = _cases(part, "train", image_name)
    try:
        return train, _cases(part, "val", image_name), []
    except MissingSplitError:
        pass
    kept = [case for case in train if "refused" in case]
    clear = [case for case in train if "refused" not in case]
    held_out: list[Case] = []
    for modality in dict.fromkeys(case.get("modality") for case in clear):
        of_one = [case for case in clear if case.get("modality") == modality]
        first, second = split_cases(of_one, fraction, seed=seed)
        kept += first
        held_out += second
    return kept, [], held_out
