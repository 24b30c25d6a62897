"""Cohorts of phantom studies on disk, with a MONAI datalist.

``root/train/<case>.nii.gz`` are healthy. ``root/val/<case>/`` and ``root/test/<case>/`` hold
``image.nii.gz`` and ``mask.nii.gz``; masks of healthy cases are empty. The kinds of lesions take
turns. ``root/datalist.json`` lists all studies, with paths relative to it and the modality.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mcmiad_monai.files.writing import replace_atomically, write_text
from mcmiad_monai.modality import BRAIN_MRI
from mcmiad_monai.phantom.brain import DEFAULT_SHAPE, LESION_KINDS, make_phantom

# Writes one file to the given path.
FileWriter = Callable[[Path], Any]
# Draws a study from its seed and its lesion: what writes its files, by their keys in the datalist.
Draw = Callable[[int, str | None], dict[str, FileWriter]]

FOLDERS = {"training": "train", "validation": "val", "test": "test"}


class Counts(NamedTuple):
    """Studies of each part; training is healthy, every second validation study has a lesion."""

    train: int
    val: int
    test_normal: int
    test_lesion: int


def write_brain_cohort(
    root: str | Path,
    *,
    train: int = 12,
    val: int = 4,
    test_normal: int = 6,
    test_lesion: int = 6,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write phantom brain studies as NIfTI files, and return the folder.

    Parameters
    ----------
    root : str or Path
        New or empty folder.
    train, val, test_normal, test_lesion : int
        Studies of each part, see :class:`Counts`.
    shape : tuple of int
        Voxels left-right, front-back and through the slices.
    seed : int
        Cohorts of different seeds share no study.
    progress : bool
        Show a progress bar.

    Raises
    ------
    FileExistsError
        If ``root`` is not empty: old and new cases would mix.
    """

    def draw(study_seed: int, lesion: str | None) -> dict[str, FileWriter]:
        phantom = make_phantom(study_seed, lesion=lesion, shape=shape)
        affine = phantom.affine
        return {"image": nifti(phantom.image, affine), "label": nifti(phantom.mask, affine)}

    return write_cohort(
        root,
        draw,
        Counts(train, val, test_normal, test_lesion),
        LESION_KINDS,
        modality=BRAIN_MRI.name,
        description="phantom FLAIR-like brain studies",
        seed=seed,
        progress=progress,
    )


def write_cohort(
    root: str | Path,
    draw: Draw,
    counts: Counts,
    kinds: Sequence[str],
    *,
    modality: str,
    description: str,
    suffix: str = ".nii.gz",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the studies that ``draw`` makes; the datalist is last, so that it lists whole files.

    ``kinds`` of lesions take turns. Files end in ``suffix``. For the rest see `write_brain_cohort`.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; choose a new folder for the phantom cohort.")
    datalist: dict[str, Any] = {
        "name": f"mcmiad_phantom_{modality}",
        "description": f"{description}, seed {seed}",
        **{section: [] for section in FOLDERS},
    }
    plan = list(_plan(counts, kinds))
    studies = tqdm(plan, desc=f"phantom {modality} studies", disable=not progress)
    for number, (section, name, lesion) in enumerate(studies):
        files = draw(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]), lesion)
        if section == "training":
            del files["label"]  # training studies are healthy and need no mask
        paths = {key: _path(section, name, key, suffix) for key in files}
        for key, path in paths.items():
            replace_atomically(root / path, files[key])
        datalist[section].append({**paths, "modality": modality})
    write_text(root / "datalist.json", json.dumps(datalist, indent=2) + "\n")
    return root


def nifti(array: NDArray[Any], affine: NDArray[np.float64]) -> FileWriter:
    """Return a writer of a volume (I, J, K) as NIfTI, in millimetres."""
    study = nib.Nifti1Image(array, affine)
    study.header.set_xyzt_units("mm")
    return study.to_filename


def _plan(counts: Counts, kinds: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """Section, case name and lesion of every study, in the order of their seeds."""
    ill = {"training": 0, "validation": counts.val // 2, "test": counts.test_lesion}
    healthy = (counts.train, counts.val - counts.val // 2, counts.test_normal)
    for (section, folder), normal in zip(FOLDERS.items(), healthy, strict=True):
        for index in range(ill[section]):
            kind = kinds[index % len(kinds)]
            yield section, f"{folder}_{kind}_{index:03d}", kind
        prefix = folder if section == "training" else f"{folder}_normal"
        for index in range(normal):
            yield section, f"{prefix}_{index:03d}", None


def _path(section: str, name: str, key: str, suffix: str) -> str:
    """Where a file of a study lies, relative to the cohort's folder."""
    if key not in ("image", "label"):  # beside the splits, where it would pass for an image
        return f"{key}s/{name}{suffix}"
    if section == "training":
        return f"{FOLDERS[section]}/{name}{suffix}"
    return f"{FOLDERS[section]}/{name}/{'image' if key == 'image' else 'mask'}{suffix}"
