"""Cohorts of phantom studies of the liver, the retina, and all modalities together, on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mcmiad_monai.data.phantom import DEFAULT_SHAPE as BRAIN_SHAPE
from mcmiad_monai.data.phantom import study_seed, write_phantom_cohort
from mcmiad_monai.data.phantom_liver import DEFAULT_SHAPE as LIVER_SHAPE
from mcmiad_monai.data.phantom_liver import LIVER_LESION_KINDS, make_liver_phantom
from mcmiad_monai.data.phantom_retina import (
    DEFAULT_SCANS,
    RETINA_LESION_KINDS,
    make_retina_bscan,
    make_retina_volume,
)
from mcmiad_monai.data.phantom_retina import DEFAULT_SHAPE as RETINA_SHAPE
from mcmiad_monai.data.volumes_files import stem_of
from mcmiad_monai.files import replace_atomically, write_text
from mcmiad_monai.modality import BRAIN_MRI, LIVER_CT, RETINA_OCT

RetinaForm = Literal["pictures", "volumes"]
# What writes one file to the path it is given.
FileWriter = Callable[[Path], Any]
# From the seed and the lesion of a study to its files by their keys in the datalist.
Draw = Callable[[int, str | None], dict[str, FileWriter]]

SECTIONS = ("training", "validation", "test")
FOLDERS = {"training": "train", "validation": "val", "test": "test"}
# Masks of the organ lie outside the folders of the splits, where they would pass for images.
ORGAN_FOLDER = "organs"


def write_liver_cohort(
    root: str | Path,
    *,
    train: int = 4,
    val: int = 4,
    test_normal: int = 2,
    test_lesion: int = 2,
    shape: tuple[int, int, int] = LIVER_SHAPE,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a cohort of phantom CT studies as NIfTI files with a MONAI datalist.

    Folders and datalist are those of ``write_phantom_cohort``. Every entry also has the keys
    ``modality`` and ``organ``, the mask of the liver in ``root/organs/<case>.nii.gz``.

    Parameters
    ----------
    root : str or Path
        New or empty folder.
    train, val, test_normal, test_lesion : int
        Studies of each part; training is healthy, every second validation study has a lesion.
    shape : tuple of int
        Voxels left-right, front-back and through the slices.
    seed : int
        Cohorts of different seeds share no study.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        The folder ``root``.

    Raises
    ------
    FileExistsError
        If ``root`` exists and is not empty: old and new cases would mix.
    """

    def draw(study_seed: int, lesion: str | None) -> dict[str, FileWriter]:
        phantom = make_liver_phantom(study_seed, lesion=lesion, shape=shape)
        return {
            "image": _nifti(phantom.image, phantom.affine),
            "label": _nifti(phantom.mask, phantom.affine),
            "organ": _nifti(phantom.organ, phantom.affine),
        }

    plan = _plan((train, val, test_normal, test_lesion), LIVER_LESION_KINDS)
    return _write_cohort(
        Path(root),
        modality=LIVER_CT.name,
        description=f"phantom CT studies of the abdomen, seed {seed}",
        plan=list(plan),
        draw=draw,
        suffix=".nii.gz",
        seed=seed,
        progress=progress,
    )


def write_retina_cohort(
    root: str | Path,
    *,
    train: int = 4,
    val: int = 4,
    test_normal: int = 2,
    test_lesion: int = 2,
    shape: tuple[int, int] = RETINA_SHAPE,
    scans: int = DEFAULT_SCANS,
    seed: int = 0,
    form: RetinaForm = "pictures",
    progress: bool = True,
) -> Path:
    """Write a cohort of phantom OCT studies with a MONAI datalist.

    Folders and datalist are those of ``write_phantom_cohort``. Every entry also has the key
    ``modality``.

    Parameters
    ----------
    root : str or Path
        New or empty folder.
    train, val, test_normal, test_lesion : int
        Studies of each part; training is healthy, every second validation study has a lesion.
    shape : (int, int)
        Width and height of a B-scan in pixels.
    scans : int
        B-scans of a volume, at least 2.
    seed : int
        Cohorts of different seeds share no study.
    form : {"pictures", "volumes"}
        One B-scan a study as PNG, with lesions white in its mask; or a volume a study as NIfTI.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        The folder ``root``.

    Raises
    ------
    FileExistsError
        If ``root`` exists and is not empty: old and new cases would mix.
    ValueError
        If the form is not known.
    """
    if form not in ("pictures", "volumes"):
        raise ValueError(f"form {form!r} is not known; choose pictures or volumes.")

    def draw_picture(study_seed: int, lesion: str | None) -> dict[str, FileWriter]:
        scan = make_retina_bscan(study_seed, lesion=lesion, shape=shape)
        return {"image": _png(scan.image), "label": _png(255 * scan.mask)}

    def draw_volume(study_seed: int, lesion: str | None) -> dict[str, FileWriter]:
        volume = make_retina_volume(study_seed, lesion=lesion, shape=shape, scans=scans)
        return {
            "image": _nifti(volume.image, volume.affine),
            "label": _nifti(volume.mask, volume.affine),
        }

    plan = _plan((train, val, test_normal, test_lesion), RETINA_LESION_KINDS)
    return _write_cohort(
        Path(root),
        modality=RETINA_OCT.name,
        description=f"phantom OCT {form} of the macula, seed {seed}",
        plan=list(plan),
        draw=draw_picture if form == "pictures" else draw_volume,
        suffix=".png" if form == "pictures" else ".nii.gz",
        seed=seed,
        progress=progress,
    )


def write_mixed_cohort(
    root: str | Path,
    *,
    train: int = 4,
    val: int = 4,
    test_normal: int = 2,
    test_lesion: int = 2,
    brain_shape: tuple[int, int, int] = BRAIN_SHAPE,
    liver_shape: tuple[int, int, int] = LIVER_SHAPE,
    retina_shape: tuple[int, int] = RETINA_SHAPE,
    retina_form: RetinaForm = "pictures",
    scans: int = DEFAULT_SCANS,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write phantom studies of all three modalities, for a model that is trained on all of them.

    ``root/brain_mri``, ``root/liver_ct`` and ``root/retina_oct`` are cohorts of their own.
    ``root/datalist.json`` lists all studies, each with its ``modality`` and a ``case`` name that
    begins with it.

    Parameters
    ----------
    root : str or Path
        New or empty folder.
    train, val, test_normal, test_lesion : int
        Studies of each part, in every modality.
    brain_shape, liver_shape, retina_shape : tuple of int
        As for the cohort of the modality.
    retina_form : {"pictures", "volumes"}
        As for ``write_retina_cohort``.
    scans : int
        B-scans of a retina volume, at least 2.
    seed : int
        Cohorts of different seeds share no study.
    progress : bool
        Show progress bars.

    Returns
    -------
    Path
        The folder ``root``.

    Raises
    ------
    FileExistsError
        If ``root`` exists and is not empty: old and new cases would mix.
    """
    root = Path(root)
    _check_empty(root)
    counts = {"train": train, "val": val, "test_normal": test_normal, "test_lesion": test_lesion}
    common: dict[str, Any] = {**counts, "seed": seed, "progress": progress}
    write_phantom_cohort(root / BRAIN_MRI.name, shape=brain_shape, **common)
    write_liver_cohort(root / LIVER_CT.name, shape=liver_shape, **common)
    write_retina_cohort(
        root / RETINA_OCT.name, shape=retina_shape, scans=scans, form=retina_form, **common
    )
    datalist = _datalist("mcmiad_phantom_mixed", f"phantom studies of 3 modalities, seed {seed}")
    for modality in (BRAIN_MRI, LIVER_CT, RETINA_OCT):
        path = root / modality.name / "datalist.json"
        listed = json.loads(path.read_text(encoding="utf-8"))
        for section in SECTIONS:
            datalist[section] += [_moved(entry, modality.name) for entry in listed[section]]
    _write_datalist(root, datalist)
    return root


def _plan(
    counts: tuple[int, int, int, int], kinds: Sequence[str]
) -> Iterator[tuple[str, str, str | None]]:
    """Section, case name and lesion of every study, in the order of their seeds."""
    train, val, test_normal, test_lesion = counts
    parts = (
        ("training", 0, train),
        ("validation", val // 2, val - val // 2),
        ("test", test_lesion, test_normal),
    )
    for section, ill, healthy in parts:
        prefix = FOLDERS[section]
        for index in range(ill):
            kind = kinds[index % len(kinds)]
            yield section, f"{prefix}_{kind}_{index:03d}", kind
        for index in range(healthy):
            normal = prefix if section == "training" else f"{prefix}_normal"
            yield section, f"{normal}_{index:03d}", None


def _write_cohort(
    root: Path,
    *,
    modality: str,
    description: str,
    plan: list[tuple[str, str, str | None]],
    draw: Draw,
    suffix: str,
    seed: int,
    progress: bool,
) -> Path:
    """Draw and write every study of a plan; the datalist comes last, so it lists whole files."""
    _check_empty(root)
    datalist = _datalist(f"mcmiad_phantom_{modality}", description)
    studies = tqdm(plan, desc=f"phantom {modality} studies", disable=not progress)
    for number, (section, name, lesion) in enumerate(studies):
        files = draw(study_seed(seed, number), lesion)
        paths = {key: _path(section, name, key, suffix) for key in files}
        if section == "training":
            del paths["label"]  # training studies are healthy and need no mask
        for key, path in paths.items():
            replace_atomically(root / path, files[key])
        datalist[section].append({**paths, "modality": modality})
    _write_datalist(root, datalist)
    return root


def _path(section: str, name: str, key: str, suffix: str) -> str:
    """Where a file of a study lies, relative to the cohort's folder."""
    if key == "organ":
        return f"{ORGAN_FOLDER}/{name}{suffix}"
    if section == "training":
        return f"{FOLDERS[section]}/{name}{suffix}"
    stem = {"image": "image", "label": "mask"}[key]
    return f"{FOLDERS[section]}/{name}/{stem}{suffix}"


def _moved(entry: dict[str, str], modality: str) -> dict[str, str]:
    """An entry of a modality's datalist as the datalist one folder above lists it."""
    paths = {key: f"{modality}/{path}" for key, path in entry.items() if key != "modality"}
    image = Path(entry["image"])
    name = image.parent.name if stem_of(image) == "image" else stem_of(image)
    return {"case": f"{modality}_{name}", **paths, "modality": modality}


def _datalist(name: str, description: str) -> dict[str, Any]:
    """A datalist without entries."""
    return {"name": name, "description": description, **{section: [] for section in SECTIONS}}


def _write_datalist(root: Path, datalist: dict[str, Any]) -> None:
    """Write the datalist of a cohort."""
    write_text(root / "datalist.json", json.dumps(datalist, indent=2) + "\n")


def _check_empty(root: Path) -> None:
    """Refuse a folder that holds something."""
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; choose a new folder for the phantom cohort.")


def _nifti(array: NDArray[Any], affine: NDArray[np.float64]) -> FileWriter:
    """Writes a volume (I, J, K) as NIfTI."""
    study = nib.Nifti1Image(array, affine)
    study.header.set_xyzt_units("mm")
    return lambda path: nib.save(study, path)


def _png(grey: NDArray[np.uint8]) -> FileWriter:
    """Writes grey levels (H, W) as PNG."""
    from PIL import Image

    return Image.fromarray(grey).save
