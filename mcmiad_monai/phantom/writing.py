"""How a cohort of phantom studies lies on disk: folders of splits, masks, a MONAI datalist."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mcmiad_monai.files import replace_atomically, write_text

# What writes one file to the path it is given.
FileWriter = Callable[[Path], Any]
# From the seed and the lesion of a study to its files by their keys in the datalist.
Draw = Callable[[int, str | None], dict[str, FileWriter]]

SECTIONS = ("training", "validation", "test")
FOLDERS = {"training": "train", "validation": "val", "test": "test"}
# Masks of the organ lie outside the folders of the splits, where they would pass for images.
ORGAN_FOLDER = "organs"


class Counts(NamedTuple):
    """Studies of each part; training is healthy, every second validation study has a lesion."""

    train: int
    val: int
    test_normal: int
    test_lesion: int


def write_cohort(
    root: str | Path,
    counts: Counts,
    kinds: Sequence[str],
    draw: Draw,
    *,
    modality: str,
    description: str,
    suffix: str,
    seed: int,
    progress: bool,
) -> Path:
    """Draw and write every study; the datalist comes last, so it lists whole files.

    Parameters
    ----------
    root : str or Path
        New or empty folder.
    counts : Counts
    kinds : sequence of str
        Of lesions, which take turns.
    draw : callable
        Makes a study.
    modality, description : str
        For the datalist.
    suffix : str
        Of images and masks.
    seed : int
        Cohorts of different seeds share no study.
    progress : bool
        Show a progress bar.

    Raises
    ------
    FileExistsError
        If ``root`` exists and is not empty: old and new cases would mix.
    """
    root = Path(root)
    check_empty(root)
    datalist = empty_datalist(f"mcmiad_phantom_{modality}", f"{description}, seed {seed}")
    plan = list(_plan(counts, kinds))
    studies = tqdm(plan, desc=f"phantom {modality} studies", disable=not progress)
    for number, (section, name, lesion) in enumerate(studies):
        files = draw(study_seed(seed, number), lesion)
        paths = {key: _path(section, name, key, suffix) for key in files}
        if section == "training":
            del paths["label"]  # training studies are healthy and need no mask
        for key, path in paths.items():
            replace_atomically(root / path, files[key])
        datalist[section].append({**paths, "modality": modality})
    write_datalist(root, datalist)
    return root


def study_seed(seed: int, number: int) -> int:
    """Seed of the study ``number`` of a cohort; cohorts of different seeds share no study."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def empty_datalist(name: str, description: str) -> dict[str, Any]:
    """A datalist without entries."""
    return {"name": name, "description": description, **{section: [] for section in SECTIONS}}


def write_datalist(root: Path, datalist: dict[str, Any]) -> None:
    """Write the datalist of a cohort."""
    write_text(root / "datalist.json", json.dumps(datalist, indent=2) + "\n")


def check_empty(root: Path) -> None:
    """Refuse a folder that holds something."""
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; choose a new folder for the phantom cohort.")


def nifti_study(
    image: NDArray[Any], mask: NDArray[Any], affine: NDArray[np.float64]
) -> dict[str, FileWriter]:
    """Files of a volume (I, J, K) with its mask."""
    return {"image": nifti(image, affine), "label": nifti(mask, affine)}


def nifti(array: NDArray[Any], affine: NDArray[np.float64]) -> FileWriter:
    """Writes a volume (I, J, K) as NIfTI."""
    study = nib.Nifti1Image(array, affine)
    study.header.set_xyzt_units("mm")
    return lambda path: nib.save(study, path)


def png(grey: NDArray[np.uint8]) -> FileWriter:
    """Writes grey levels (H, W) as PNG."""
    from PIL import Image

    return Image.fromarray(grey).save


def _plan(counts: Counts, kinds: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """Section, case name and lesion of every study, in the order of their seeds."""
    parts = (
        ("training", 0, counts.train),
        ("validation", counts.val // 2, counts.val - counts.val // 2),
        ("test", counts.test_lesion, counts.test_normal),
    )
    for section, ill, healthy in parts:
        prefix = FOLDERS[section]
        for index in range(ill):
            kind = kinds[index % len(kinds)]
            yield section, f"{prefix}_{kind}_{index:03d}", kind
        for index in range(healthy):
            normal = prefix if section == "training" else f"{prefix}_normal"
            yield section, f"{normal}_{index:03d}", None


def _path(section: str, name: str, key: str, suffix: str) -> str:
    """Where a file of a study lies, relative to the cohort's folder."""
    if key == "organ":
        return f"{ORGAN_FOLDER}/{name}{suffix}"
    if section == "training":
        return f"{FOLDERS[section]}/{name}{suffix}"
    stem = {"image": "image", "label": "mask"}[key]
    return f"{FOLDERS[section]}/{name}/{stem}{suffix}"
