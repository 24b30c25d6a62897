"""Cohorts of phantom studies of the brain, the liver, the retina, and all of them, on disk.

``root/train/<case>.nii.gz`` are healthy. ``root/val/<case>/`` and ``root/test/<case>/`` hold
``image.nii.gz`` and ``mask.nii.gz``; masks of healthy cases are empty. Lesions take turns through
the kinds of the modality. ``root/datalist.json`` lists all of them, with paths relative to it and
the modality.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from mcmiad_monai.data.cases.names import stem_of
from mcmiad_monai.modality import BRAIN_MRI, LIVER_CT, RETINA_OCT
from mcmiad_monai.phantom.brain import DEFAULT_SHAPE as BRAIN_SHAPE
from mcmiad_monai.phantom.brain import LESION_KINDS, make_phantom
from mcmiad_monai.phantom.liver import DEFAULT_SHAPE as LIVER_SHAPE
from mcmiad_monai.phantom.liver import LIVER_LESION_KINDS, make_liver_phantom
from mcmiad_monai.phantom.retina import (
    DEFAULT_SCANS,
    RETINA_LESION_KINDS,
    make_retina_bscan,
    make_retina_volume,
)
from mcmiad_monai.phantom.retina import DEFAULT_SHAPE as RETINA_SHAPE
from mcmiad_monai.phantom.writing import (
    SECTIONS,
    Counts,
    FileWriter,
    check_empty,
    empty_datalist,
    nifti,
    nifti_study,
    png,
    write_cohort,
    write_datalist,
)

RetinaForm = Literal["pictures", "volumes"]


def write_brain_cohort(
    root: str | Path,
    *,
    train: int = 12,
    val: int = 4,
    test_normal: int = 6,
    test_lesion: int = 6,
    shape: tuple[int, int, int] = BRAIN_SHAPE,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write phantom studies like FLAIR as NIfTI files.

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
        phantom = make_phantom(study_seed, lesion=lesion, shape=shape)
        return nifti_study(phantom.image, phantom.mask, phantom.affine)

    return write_cohort(
        root,
        Counts(train, val, test_normal, test_lesion),
        LESION_KINDS,
        draw,
        modality=BRAIN_MRI.name,
        description="phantom FLAIR-like brain studies",
        suffix=".nii.gz",
        seed=seed,
        progress=progress,
    )


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
    """Write phantom CT studies as NIfTI files.

    Parameters, result and errors are those of :func:`write_brain_cohort`. Every entry of the
    datalist also has the key ``organ``, the mask of the liver in ``root/organs/<case>.nii.gz``.
    """

    def draw(study_seed: int, lesion: str | None) -> dict[str, FileWriter]:
        phantom = make_liver_phantom(study_seed, lesion=lesion, shape=shape)
        files = nifti_study(phantom.image, phantom.mask, phantom.affine)
        return {**files, "organ": nifti(phantom.organ, phantom.affine)}

    return write_cohort(
        root,
        Counts(train, val, test_normal, test_lesion),
        LIVER_LESION_KINDS,
        draw,
        modality=LIVER_CT.name,
        description="phantom CT studies of the abdomen",
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
    """Write phantom OCT studies.

    Parameters, result and errors are those of :func:`write_brain_cohort`, and these.

    Parameters
    ----------
    shape : (int, int)
        Width and height of a B-scan in pixels.
    scans : int
        B-scans of a volume, at least 2.
    form : {"pictures", "volumes"}
        One B-scan a study as PNG, with lesions white in its mask; or a volume a study as NIfTI.

    Raises
    ------
    ValueError
        If the form is not known.
    """
    if form not in ("pictures", "volumes"):
        raise ValueError(f"form {form!r} is not known; choose pictures or volumes.")

    def draw_picture(study_seed: int, lesion: str | None) -> dict[str, FileWriter]:
        scan = make_retina_bscan(study_seed, lesion=lesion, shape=shape)
        return {"image": png(scan.image), "label": png(255 * scan.mask)}

    def draw_volume(study_seed: int, lesion: str | None) -> dict[str, FileWriter]:
        volume = make_retina_volume(study_seed, lesion=lesion, shape=shape, scans=scans)
        return nifti_study(volume.image, volume.mask, volume.affine)

    return write_cohort(
        root,
        Counts(train, val, test_normal, test_lesion),
        RETINA_LESION_KINDS,
        draw_picture if form == "pictures" else draw_volume,
        modality=RETINA_OCT.name,
        description=f"phantom OCT {form} of the macula",
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
    begins with it. Parameters, result and errors are those of the cohorts; numbers of studies are
    of every modality.
    """
    root = Path(root)
    check_empty(root)
    counts = {"train": train, "val": val, "test_normal": test_normal, "test_lesion": test_lesion}
    common: dict[str, Any] = {**counts, "seed": seed, "progress": progress}
    write_brain_cohort(root / BRAIN_MRI.name, shape=brain_shape, **common)
    write_liver_cohort(root / LIVER_CT.name, shape=liver_shape, **common)
    write_retina_cohort(
        root / RETINA_OCT.name, shape=retina_shape, scans=scans, form=retina_form, **common
    )
    datalist = empty_datalist(
        "mcmiad_phantom_mixed", f"phantom studies of 3 modalities, seed {seed}"
    )
    for modality in (BRAIN_MRI, LIVER_CT, RETINA_OCT):
        path = root / modality.name / "datalist.json"
        listed = json.loads(path.read_text(encoding="utf-8"))
        for section in SECTIONS:
            datalist[section] += [_moved(entry, modality.name) for entry in listed[section]]
    write_datalist(root, datalist)
    return root


def _moved(entry: dict[str, str], modality: str) -> dict[str, str]:
    """An entry of a modality's datalist as the datalist one folder above lists it."""
    paths = {key: f"{modality}/{path}" for key, path in entry.items() if key != "modality"}
    image = Path(entry["image"])
    name = image.parent.name if stem_of(image) == "image" else stem_of(image)
    return {"case": f"{modality}_{name}", **paths, "modality": modality}
