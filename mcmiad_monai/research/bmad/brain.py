"""BMAD's brain set made from BraTS2021."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mcmiad_monai.data.cases.names import CaseError, listing
from mcmiad_monai.research.bmad.layout import Pair, find_pairs
from mcmiad_monai.research.bmad.prepare import (
    Plane,
    Prepared,
    Slice,
    load_pair,
    new_folder,
    split_of,
    stretched,
    to_bytes,
    write_slices,
)
from mcmiad_monai.research.bmad.release import (
    BRAIN_ILL,
    BRAIN_ILL_VALID,
    BRAIN_SLICES,
    BRAIN_STEP,
    good_patients,
    number_of,
)

logger = logging.getLogger(__name__)

#: Shares of the patients in a clean preparation: those that anomalous slices have in the release.
BRAIN_SHARES = {"valid": 11 / 1251, "test": 615 / 1251}


def prepare_brain(
    source: str | Path,
    out: str | Path,
    *,
    clean: bool = False,
    slices: Sequence[int] = BRAIN_SLICES,
    shares: dict[str, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Prepared:
    """Write ``Brain_AD`` from BraTS2021: ``*_flair.nii.gz`` with ``*_seg.nii.gz`` beside it.

    Axial slices as stored, min–max each. Patients are good or anomalous as BMAD publishes it;
    published patients that are missing are named in ``notes``. A volume that cannot be used is
    reported and passed over.

    Parameters
    ----------
    source : path
        Folder with one folder a patient, or with all files. Unless ``clean``, patients are named
        as in BraTS2021: ``BraTS2021_00003``, or the number alone.
    out : path
        New or empty folder; ``Brain_AD`` is made in it.
    clean : bool
        See :mod:`~mcmiad_monai.research.bmad.prepare`.
    slices : sequence of int
        Indices along the third axis.
    shares : dict, optional
        Share of the patients in ``valid`` and ``test`` of a clean preparation.
    seed : int
        Seed of what is drawn: all patients if clean, else which anomalous ones are in valid.

    Raises
    ------
    CaseError
        If no pair of files is found, no patient is named as in BraTS2021, or there are too few
        patients for a clean preparation.
    ValueError
        If there are no slices, or shares without ``clean``.
    FileExistsError
        If the folder is not empty.
    """
    if not slices:
        raise ValueError("slices is empty; give indices along the third axis.")
    if shares is not None and not clean:
        raise ValueError("shares are of a clean preparation; the release publishes its patients.")
    root = new_folder(Path(out)) / "Brain_AD"
    pairs = find_pairs(Path(source), "flair", "seg")
    failures: dict[str, str] = {}
    notes: list[str] = []
    if clean:
        roles = split_of(pairs, shares or BRAIN_SHARES, seed)
    else:
        roles, notes = release_roles(pairs, seed, failures)

    def planes(pair: Pair) -> Iterator[Slice]:
        volume, labels = load_pair(pair)
        for k in _inside(slices, labels, pair):
            flair, marked = volume[:, :, k], labels[:, :, k]
            folder = _folder_of(roles[pair.name], k, bool(marked.any()), slices[0])
            if folder is None:
                continue
            shown = _upright(to_bytes(flair)) if clean else _bone(flair)
            mask = _upright(255 * (marked > 0)) if clean else _bone(marked)
            yield folder, f"{pair.name}_{k}", shown, mask

    options = {"clean": clean, "seed": seed, "slices": list(slices), "shares": shares}
    return write_slices(
        root, pairs, planes, options=options, failures=failures, notes=notes, progress=progress
    )


def release_roles(
    pairs: Sequence[Pair], seed: int, failures: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Folder that each patient's slices go to, and what differs from the release, in words.

    Good patients are the published ones. Of all others, 11 of 626 are for validation, drawn here,
    and the rest for test.

    Parameters
    ----------
    failures : dict
        Receives the patients whose names are not of BraTS2021.

    Raises
    ------
    CaseError
        If no name is.
    """
    usable = [pair for pair in pairs if pair.labels is not None]
    numbers = {p.name: number for p in usable if (number := number_of(p.name)) is not None}
    if not numbers:
        raise CaseError(
            f"none of the {len(usable)} patients is named as in BraTS2021 (BraTS2021_00003), whose "
            f"numbers BMAD publishes: {listing([p.image for p in usable], 5)}. Bring the files of "
            "BraTS2021 under their own names, or use clean=True (--clean), which draws the "
            "patients."
        )
    for name in sorted({p.name for p in usable} - set(numbers)):
        failures[name] = (
            "its name is not one of BraTS2021 (BraTS2021_00003), so that its place in the release "
            "is not known"
        )
        logger.error("%s left out: %s", name, failures[name])
    there = set(numbers.values())
    notes: list[str] = []
    roles: dict[str, str] = {}
    for folder, published in good_patients().items():
        roles |= {name: folder for name, number in numbers.items() if number in published}
        if missing := sorted(published - there):
            first = ", ".join(f"{number:05d}" for number in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            notes.append(
                f"{folder}: {len(missing)} of the {len(published)} published patients are not in "
                f"the folder given: {first}{more}"
            )
    ill = np.random.default_rng(seed).permutation(sorted(set(numbers) - set(roles))).tolist()
    if len(ill) != BRAIN_ILL:
        notes.append(f"Ungood: {len(ill)} patients, the release has {BRAIN_ILL}")
    for note in notes:
        logger.warning("%s", note)
    # in proportion, at least one for each part
    count = max(0, min(max(1, round(len(ill) * BRAIN_ILL_VALID / BRAIN_ILL)), len(ill) - 1))
    roles |= {name: f"{'valid' if k < count else 'test'}/Ungood" for k, name in enumerate(ill)}
    notes.append(
        f"valid/Ungood: {count} of {len(ill)} anomalous patients, drawn with seed {seed}; which "
        f"{BRAIN_ILL_VALID} the release has there cannot be reproduced"
    )
    return roles, notes


def _folder_of(role: str, k: int, ill: bool, first: int) -> str | None:
    """Folder of slice ``k`` of a patient whose role is ``test`` or ``test/good``, if it is used."""
    split, _, kind = role.partition("/")
    kind = kind or ("Ungood" if ill else "good")
    if kind == "good":
        return None if ill else f"{split}/good"
    used = split in BRAIN_STEP and (k - first) % BRAIN_STEP[split] == 0
    return f"{split}/Ungood" if used else None


def _inside(slices: Sequence[int], labels: Plane, pair: Pair) -> list[int]:
    """Slices that a volume has."""
    inside = [k for k in slices if k < labels.shape[2]]
    if not inside:
        raise CaseError(f"{pair.image.name} has {labels.shape[2]} slices, none of those wanted.")
    return inside


def _bone(plane: Plane) -> Plane:
    """A slice in matplotlib's colours, min–max, (rows, columns, 4)."""
    from matplotlib import colormaps

    return np.asarray(colormaps["bone"](stretched(plane), bytes=True))


def _upright(plane: Plane) -> Plane:
    """Rows from front to back for arrays stored towards the left and the back, as BraTS is."""
    return np.asarray(plane.T)
