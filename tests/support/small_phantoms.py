"""The smallest CT and OCT studies that tests need, and a cohort of all modalities.

The package's own phantom is a brain. Here are a body with a liver in Hounsfield units, and retinal
layers; lesions are dark or bright blobs. The same seed with and without a lesion differs in the
lesion alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from mcmiad_monai.files.writing import write_text
from mcmiad_monai.phantom.brain import Phantom, stored
from mcmiad_monai.phantom.cohorts import Counts, nifti, write_brain_cohort, write_cohort

Lesion = Literal["dark", "bright"]
LESION_KINDS: tuple[Lesion, ...] = ("dark", "bright")
LIVER_SHAPE = (48, 40, 10)
RETINA_SHAPE = (64, 48)
ORIENTATIONS = ("LPS", "RPI", "RAS", "PIR")
#: Hounsfield units of the body's parts.
AIR, FAT, MUSCLE, BONE, LIVER = -1000, -100, 55, 450, 105
#: Hounsfield units and reflectivity (0 to 1) of lesions.
LESION_HU = {"dark": 20, "bright": 190}
LESION_REFLECTIVITY = {"dark": 0.03, "bright": 0.95}
#: Studies of each part of a cohort by default.
FEW = {"train": 4, "val": 4, "test_normal": 2, "test_lesion": 2}


def make_liver(
    seed: int,
    *,
    lesion: str | None = None,
    shape: tuple[int, int, int] = LIVER_SHAPE,
    orientation: str | None = None,
) -> tuple[Phantom, NDArray[np.uint8]]:
    """An abdomen on an oblique grid, and the mask of its liver on the same grid.

    ``shape`` is left-right, front-back and through the slices, before axes are stored in the order
    of ``orientation``, by default one that the seed chooses.
    """
    rng = np.random.default_rng(seed)
    x, y, z = _grid(shape)  # to the right, the front and the top
    size = rng.normal(1.0, 0.03)
    trunk = np.hypot(x / 0.88, y / 0.8) / size
    liver = _blob((x - 0.35, y - 0.1, z), (0.42 * size, 0.45 * size, 1.3))
    spine = _blob((x, y + 0.5), (0.12, 0.12))
    hounsfield = np.select([spine, liver, trunk < 0.85, trunk < 1], [BONE, LIVER, MUSCLE, FAT], AIR)
    centre = rng.uniform((0.25, 0.0, -0.3), (0.45, 0.2, 0.3))
    mask = _blob((x - centre[0], y - centre[1], z - centre[2]), (0.16, 0.18, 0.4))
    if lesion is not None:
        hounsfield = np.where(mask, LESION_HU[lesion], hounsfield)
    noisy = np.maximum(np.rint(hounsfield + 10.0 * rng.standard_normal(shape)), -1024)
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.uniform(5.0, 15.0, 3), degrees=True).as_matrix()
    affine[:3, :3] = turn * (np.asarray((370.0, 300.0, 180.0)) / shape)
    affine[:3, 3] = rng.normal(0.0, 20.0, 3) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    codes = orientation or ORIENTATIONS[rng.integers(len(ORIENTATIONS))]
    image, label = noisy.astype(np.int16), (mask & (lesion is not None)).astype(np.uint8)
    organ = stored(image, liver.astype(np.uint8), affine, codes).mask
    return stored(image, label, affine, codes), organ


def make_retina(
    seed: int,
    *,
    lesion: str | None = None,
    shape: tuple[int, int] = RETINA_SHAPE,
    scans: int = 1,
    orientation: str | None = None,
) -> Phantom:
    """A volume of B-scans; in LPS order an axial slice is one, with depth towards P.

    ``shape`` is the width and the depth of a B-scan in pixels; the lesion meets the middle scans.
    """
    rng = np.random.default_rng(seed)
    x, depth, y = _grid((*shape, scans))
    pit = rng.uniform(0.2, 0.3) * np.exp(-((x - rng.normal(0.0, 0.1)) ** 2) / 0.05)
    below = (depth + 0.35 + rng.normal(0.0, 0.05) - pit) / 0.6  # 0 at the vitreous, 1 at the bottom
    bands = 0.45 + 0.2 * np.cos(6 * np.pi * below) + 0.35 * (below > 0.9)
    choroid = 0.5 * np.exp(-3 * np.maximum(below - 1, 0))
    grey = np.select([below < 0, below < 1], [np.full_like(below, 0.05), bands], choroid)
    mask = _blob((x - rng.uniform(-0.5, 0.5), below - 0.5, y), (0.2, 0.3, 0.7))
    if lesion is not None:
        grey = np.where(mask, LESION_REFLECTIVITY[lesion], grey)
    grey = np.clip(grey * np.exp(0.2 * rng.standard_normal(grey.shape)), 0, 1)
    upright = np.s_[::-1, ::-1]  # from LPS to RAS
    affine = np.diag([6.0 / shape[0], 1.1 / shape[1], 4.0 / scans, 1.0])  # mm
    image = np.rint(255 * grey[upright]).astype(np.uint8)
    codes = orientation or ORIENTATIONS[rng.integers(len(ORIENTATIONS))]
    label = (mask[upright] & (lesion is not None)).astype(np.uint8)
    return stored(image, label, affine, codes)


def _grid(shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Coordinates of voxel centres, from -1 to 1 along each axis."""
    axes = [(2 * np.arange(size) + 1) / size - 1 for size in shape]
    return np.meshgrid(*axes, indexing="ij")


def _blob(offset: tuple[NDArray[Any], ...], radii: tuple[float, ...]) -> NDArray[np.bool_]:
    """The inside of an ellipsoid, from the offset along each axis."""
    return sum((o / r) ** 2 for o, r in zip(offset, radii, strict=True)) < 1


def write_liver_cohort(
    root: str | Path,
    *,
    shape: tuple[int, int, int] = LIVER_SHAPE,
    seed: int = 0,
    progress: bool = False,
    **counts: int,
) -> Path:
    """Write CT studies as NIfTI; each entry also has its ``organ``, the mask of the liver."""

    def draw(study_seed: int, lesion: str | None) -> dict[str, Callable[[Path], Any]]:
        phantom, organ = make_liver(study_seed, lesion=lesion, shape=shape)
        arrays = {"image": phantom.image, "label": phantom.mask, "organ": organ}
        return {key: nifti(array, phantom.affine) for key, array in arrays.items()}

    of_each = Counts(**{**FEW, **counts})
    common: dict[str, Any] = {"seed": seed, "progress": progress}
    common |= {"modality": "liver_ct", "description": "small CT studies"}
    return write_cohort(root, draw, of_each, LESION_KINDS, **common)


def write_retina_cohort(
    root: str | Path,
    *,
    shape: tuple[int, int] = RETINA_SHAPE,
    scans: int = 4,
    form: Literal["pictures", "volumes"] = "pictures",
    seed: int = 0,
    progress: bool = False,
    **counts: int,
) -> Path:
    """Write OCT studies: one B-scan as PNG with white lesions in its mask, or a volume as NIfTI."""

    def draw(study_seed: int, lesion: str | None) -> dict[str, Callable[[Path], Any]]:
        if form == "volumes":
            volume = make_retina(study_seed, lesion=lesion, shape=shape, scans=scans)
            arrays = {"image": volume.image, "label": volume.mask}
            return {key: nifti(array, volume.affine) for key, array in arrays.items()}
        scan = make_retina(study_seed, lesion=lesion, shape=shape, orientation="LPS")
        levels = {"image": scan.image, "label": 255 * scan.mask}
        return {key: Image.fromarray(grey[:, :, 0].T).save for key, grey in levels.items()}

    of_each = Counts(**{**FEW, **counts})
    common: dict[str, Any] = {"seed": seed, "progress": progress}
    common["suffix"] = ".png" if form == "pictures" else ".nii.gz"
    common |= {"modality": "retina_oct", "description": "small OCT studies"}
    return write_cohort(root, draw, of_each, LESION_KINDS, **common)


def write_mixed_cohort(
    root: str | Path,
    *,
    brain_shape: tuple[int, int, int] = (40, 48, 10),
    liver_shape: tuple[int, int, int] = LIVER_SHAPE,
    retina_shape: tuple[int, int] = RETINA_SHAPE,
    progress: bool = False,
    **counts: int,
) -> Path:
    """Write a cohort of each modality below ``root``, and a datalist of all of them there.

    The cohorts are ``root/brain_mri``, ``root/liver_ct`` and ``root/retina_oct``. Entries of the
    common datalist have their ``modality``, and a ``case`` name that begins with it. ``counts``
    are the studies of each part, of every modality.
    """
    root, options = Path(root), {**FEW, **counts, "progress": progress}
    cohorts = {
        "brain_mri": write_brain_cohort(root / "brain_mri", shape=brain_shape, **options),
        "liver_ct": write_liver_cohort(root / "liver_ct", shape=liver_shape, **options),
        "retina_oct": write_retina_cohort(root / "retina_oct", shape=retina_shape, **options),
    }
    sections: dict[str, list[Any]] = {"training": [], "validation": [], "test": []}
    for modality, cohort in cohorts.items():
        listed = json.loads((cohort / "datalist.json").read_text("utf-8"))
        for section, entries in sections.items():
            for entry in listed[section]:
                paths = {key: f"{modality}/{entry[key]}" for key in entry if key != "modality"}
                name = Path(entry["image"]).name.split(".")[0]
                name = Path(entry["image"]).parent.name if name == "image" else name
                case = f"{modality}_{name}"
                entries.append({"case": case, **paths, "modality": modality})
    datalist = {"name": "mixed", "description": "small studies of 3 modalities", **sections}
    write_text(root / "datalist.json", json.dumps(datalist, indent=2) + "\n")
    return root
