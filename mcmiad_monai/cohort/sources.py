"""Where the studies of a cohort come from: folders, datalists, lists of paths, archives."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from mcmiad_monai.data.cases.find import Split, drop_repeated, name_uniquely
from mcmiad_monai.data.cases.lists import is_list, names_cases, read_list
from mcmiad_monai.data.cases.names import Case, CaseError
from mcmiad_monai.data.cases.patients import hashed_patient
from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.files.formats import is_address
from mcmiad_monai.files.leftovers import partial_path, remove_leftovers
from mcmiad_monai.modality import BRAIN_MRI, Modality

#: What stands for a patient; see `hashed_patient`.
PSEUDONYM = re.compile("[0-9a-f]{16}")


def studies_of(
    sources: Sequence[str | Path],
    *,
    split: Split = "test",
    image_name: str | None = None,
    query: Sequence[tuple[str, str]] = (),
    modality: Modality | str | None = None,
    study_modality: str | None = None,
) -> Iterator[Case]:
    """Studies of sources, each with a name of its own.

    A single list (CSV, Parquet) that names its cases, and a single archive, are read as they are
    needed; of all others the cases are in memory.

    Parameters
    ----------
    sources : sequence of path or str
        Files, folders, datalists, lists, and addresses (``https://…``) of DICOMweb archives.
    split : {"train", "val", "test", "all"}
        Which cases, of sources that have splits.
    image_name : str, optional
        Word in the names of the images, where a case has several; see ``find_cases``.
    query : sequence of (str, str)
        What archives are asked for; see `find_series`.
    modality : Modality or str, optional
        Of the model.
    study_modality : str, optional
        Of every study, where the source does not tell.

    Yields
    ------
    dict
        Cases as ``find_cases`` gives them. ``image`` is a path, or the address of a series: see
        `on_disk`. ``patient`` is a digest, and ``refused`` the reason where a case cannot be one.

    Raises
    ------
    CaseError
        As ``find_cases``; or if there is a query, and no archive.
    AddressError, ArchiveError
        If an archive cannot be asked.
    """
    if query and not any(map(is_address, sources)):
        raise CaseError("--query is for DICOMweb addresses (https://…), and no source is one.")
    find = partial(
        find_studies,
        split=split,
        # of a model that is not unified no folder is taken apart by names of modalities
        modality=modality or BRAIN_MRI,
        study_modality=study_modality,
        image_name=image_name,
    )
    parts = [
        _of_archive(one, query, study_modality or modality)
        if isinstance(one, str) and is_address(one)
        else _of_files(Path(one).expanduser(), split, find)
        for one in sources
    ]
    found: Iterable[Case] = chain.from_iterable(parts)
    if len(parts) > 1:
        found = name_uniquely(drop_repeated(_once(found)))
    given = {} if study_modality is None else {"modality": study_modality}
    for case in found:
        yield _pseudonymous({**case, **given})


def _once(cases: Iterable[Case]) -> list[Case]:
    """Cases without a series that another archive has as well: its name is made from its UID."""
    series: dict[str, Case] = {}
    return [
        case
        for case in cases
        if not is_address(case["image"]) or series.setdefault(case["case"], case) is case
    ]


def _of_archive(
    address: str, query: Sequence[tuple[str, str]], modality: Modality | str | None
) -> Iterator[Case]:
    """Series of an archive."""
    from mcmiad_monai.dicom.web import find_series

    return find_series(address, query, modality=modality)


def _of_files(source: Path, split: Split, find: Callable[[Path], list[Case]]) -> Iterator[Case]:
    """Cases of files; a table that names them is read row by row."""
    if is_list(source) and source.is_file() and names_cases(source):
        yield from read_list(source, split)
    else:
        yield from find(source)


def _pseudonymous(case: Case) -> Case:
    """A patient of a datalist or of BIDS is told by a digest, as that of a DICOM header."""
    patient = case.get("patient")
    if not patient or PSEUDONYM.fullmatch(str(patient)):
        return case
    return {**case, "patient": hashed_patient(str(patient))}


@contextmanager
def on_disk(case: Mapping[str, Any], *, within: str | Path | None = None) -> Iterator[Case]:
    """A case whose image is on this machine: a series of an archive is fetched, and removed after.

    Parameters
    ----------
    case : dict
        Of `studies_of`.
    within : path, optional
        Folder of the fetched series, by default that of temporary files. What killed runs left in
        it is removed.

    Yields
    ------
    dict
        The case; `image` is a path.

    Raises
    ------
    ArchiveError
        If the series cannot be fetched.
    DiskFullError
        If there is no room for it.
    """
    if not is_address(case["image"]):
        yield dict(case)
        return
    from mcmiad_monai.dicom.web import fetch_series
    from mcmiad_monai.transforms.checks import VolumeError

    parent = Path(within or tempfile.gettempdir())
    _clear(parent)
    top = partial_path(parent / "series")
    folder = top / case["case"]
    try:
        top.mkdir(mode=0o700)
        folder.mkdir()
        fetch_series(case["image"], folder)
        yield {**case, "image": str(folder)}
    except ValueError as error:  # of a reader, which knows the folder only
        if str(folder) not in str(error):
            raise
        raise VolumeError(str(error).replace(str(folder), case["image"])) from error
    finally:
        shutil.rmtree(top, ignore_errors=True)


@cache
def _clear(folder: Path) -> None:
    """Remove what killed runs left; once, for a folder may have many entries."""
    remove_leftovers(folder, levels=0)
