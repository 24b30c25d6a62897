"""A small generated tree in the layouts of BMAD, to try commands on and to test them.

Its images show an ellipse with or without a blob. They show that the software works, and say
nothing about patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mcmiad_monai.files.writing import replace_atomically
from mcmiad_monai.research.bmad.sets import OFFICIAL

Layout = Literal["official", "flat", "inverted", "archive", "ader"]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
#: Patients by split: healthy ones, and ones with lesions.
PATIENTS: dict[str, tuple[int, int]] = {"train": (6, 0), "valid": (2, 2), "test": (3, 4)}
SLICES = 2
#: Folders of brain, liver, RESC and OCT2017 in a layout; ADer has no OCT2017.
FOLDERS: dict[Layout, str] = {
    "official": "Brain_AD Liver_AD Retina_RESC_AD Retina_OCT2017_AD",
    "flat": "Brain Liver Retina_RESC Retina_OCT2017",
    "inverted": "Brain_AD Liver_AD RESC OCT2017",
    "archive": "Brain_AD/BraTS2021_slice Liver_AD/hist_DIY Retina_RESC_AD/RESC "
    "Retina_OCT2017_AD/OCT2017",
    "ader": "brain liver retinal",
}
#: Folders of training, good and anomalous images, and masks, of a layout or of one set in it.
#: ``{split}`` is valid or test, ``{part}`` val or test, and ``{Part}`` the same with a capital.
_INVERTED = "train/good {split}/img/good {split}/img/Ungood {split}/label/Ungood"
PLACES = {
    "official": "train/good/img {split}/good/img {split}/Ungood/img {split}/Ungood/anomaly_mask",
    "flat": "train/good {split}/good {split}/Ungood/img {split}/Ungood/label",
    "inverted": _INVERTED,
    "ader": "train/good {split}/good {split}/Ungood ground_truth/Ungood",
    "archive brain": "train/good {split}/good/img {split}/Ungood/img {split}/Ungood/label",
    "archive liver": _INVERTED,
    "archive resc": "Train/train/good {Part}/{part}/good {Part}/{part}/Ungood "
    "{Part}/{part}_label/Ungood",
    "archive oct2017": "train/good {part}/good {part}/Ungood none",
}
#: Half-axes of the ellipse across and down (the image reaches from -1 to 1), its grey level and
#: that of lesions.
LOOKS = {
    "brain": (0.7, 0.85, 0.45, 0.85),
    "liver": (0.85, 0.55, 0.6, 0.25),
    "resc": (2.5, 0.4, 0.5, 0.08),
    "oct2017": (2.5, 0.4, 0.5, 0.08),
}


def write_bmad_phantom(
    out: str | Path,
    *,
    layout: Layout = "official",
    sets: Sequence[str] | None = None,
    patients: Mapping[str, tuple[int, int]] | None = None,
    size: int = 96,
    seed: int = 0,
) -> Path:
    """Write a tree of images with their masks into a new or empty folder, and return it.

    Masks have several levels, and in each split one anomalous image of the brain has an empty mask;
    OCT2017 is JPEG and has no masks.

    Parameters
    ----------
    layout : str
        ``official`` as BMAD describes itself; ``flat`` without the folder ``img`` of good images;
        ``inverted`` with ``img`` and ``label`` above the classes; ``archive`` as its archives
        unpack, the brain in matplotlib's ``bone`` colours; ``ader`` without a valid part.
    sets : sequence of str, optional
        Of brain, liver, resc and oct2017; all that the layout has by default.
    patients : mapping, optional
        Healthy and ill patients of ``train``, ``valid`` and ``test``; each has two images.
    size : int
        Pixels a side.

    Raises
    ------
    ValueError, FileExistsError
        If the layout, a set or a split is not known, or the folder is not empty.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not known; choose one of {LAYOUTS}.")
    folders = dict(zip(OFFICIAL, FOLDERS[layout].split(), strict=False))
    chosen = list(folders) if sets is None else list(sets)
    if unknown := sorted(set(chosen) - set(folders)):
        raise ValueError(f"sets {unknown} are not in layout {layout!r}; it has {list(folders)}.")
    counts = PATIENTS if patients is None else dict(patients)
    if not set(counts) <= set(PATIENTS) or counts.get("train", (0, 0))[1]:
        expected = f"(healthy, ill) of {list(PATIENTS)}, none ill in train"
        raise ValueError(f"patients are {counts}; expected {expected}.")
    root = Path(out)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; give a new folder.")
    for name in chosen:
        rng = np.random.default_rng([seed, list(OFFICIAL).index(name)])
        places = (PLACES.get(f"{layout} {name}") or PLACES[layout]).split()
        colours = "bone" if layout == "archive" and name == "brain" else None
        suffix = ".jpeg" if name == "oct2017" else ".png"
        for split, stem, ill, image, mask in _images(name, counts, size, rng):
            if layout == "ader" and split == "valid":
                continue
            part = "val" if split == "valid" else split
            train, good, ungood, masks = (
                root / folders[name] / place.format(split=split, part=part, Part=part.title())
                for place in places
            )
            folder = ungood if ill else train if split == "train" else good
            _save(image, folder / f"{stem}{suffix}", colours)
            if ill and OFFICIAL[name].masks:
                _save(mask, masks / f"{stem}.png", colours)
    return root


def _images(
    name: str, counts: Mapping[str, tuple[int, int]], size: int, rng: np.random.Generator
) -> Iterator[tuple[str, str, bool, NDArray[Any], NDArray[Any]]]:
    """Split, file name, class, grey levels and mask (size, size) of each image of a set."""
    across, down, grey, lesion_grey = LOOKS[name]
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    patient = 0
    for split, (healthy, ill) in counts.items():
        for k in range(healthy + ill):
            patient += 1
            person = rng.normal(1.0, 0.04, 2)
            radius = np.hypot(x / (across * person[0]), y / (down * person[1]))
            for index in range(SLICES):
                texture = gaussian_filter(rng.normal(size=(size, size)), 1.0)
                image = (grey + 0.15 * texture) * np.clip(12 * (1 - radius), 0, 1)
                inside = np.argwhere(radius < 0.7)
                row, column = inside[rng.integers(len(inside))]
                blob = np.hypot(y - y[row, 0], x - x[0, column]) < rng.uniform(0.12, 0.25)
                # one slice beside the tumour, which its folder calls anomalous
                shown = k >= healthy and not (name == "brain" and k == healthy and index == 0)
                mask = blob & (radius < 0.8) & shown
                # the lesion's edge alone is soft: a blurred image would tell its class
                image += gaussian_filter(mask.astype(float), 0.6) * (lesion_grey - image)
                levels = mask * np.where(np.arange(size) % 2, 60, 255)
                stem = f"{name.upper()}_{patient:03d}_{60 + index}"
                yield split, stem, k >= healthy, 255 * np.clip(image, 0, 1), levels


def _save(levels: NDArray[Any], path: Path, colours: str | None) -> None:
    """Write grey levels from 0 to 255, in the colours of a colour map of matplotlib if given."""
    from PIL import Image

    values = levels.astype(np.uint8)
    if colours:
        from matplotlib import colormaps

        values = np.asarray(colormaps[colours](values, bytes=True))
    replace_atomically(path, Image.fromarray(values).save)
