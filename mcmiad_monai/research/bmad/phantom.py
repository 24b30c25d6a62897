"""A small generated tree in the layouts of BMAD, to try commands on and to test them.

The drawings are heads, livers and retinas only in outline: they show that the software works, and
say nothing about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mcmiad_monai.files import replace_atomically
from mcmiad_monai.research.bmad.sets import OFFICIAL

Layout = Literal["official", "flat", "inverted", "archive", "ader"]
Picture = NDArray[np.float64]
Mask = NDArray[np.bool_]

LAYOUTS: tuple[Layout, ...] = ("official", "flat", "inverted", "archive", "ader")
#: Patients by split: healthy ones, and ones with lesions.
PATIENTS: dict[str, tuple[int, int]] = {"train": (6, 0), "valid": (2, 2), "test": (3, 4)}
SLICES = 2
#: Folder of each set in a layout; ADer has no OCT2017.
FOLDERS: dict[Layout, dict[str, str]] = {
    "official": {
        "brain": "Brain_AD",
        "liver": "Liver_AD",
        "resc": "Retina_RESC_AD",
        "oct2017": "Retina_OCT2017_AD",
    },
    "flat": {
        "brain": "Brain",
        "liver": "Liver",
        "resc": "Retina_RESC",
        "oct2017": "Retina_OCT2017",
    },
    "inverted": {"brain": "Brain_AD", "liver": "Liver_AD", "resc": "RESC", "oct2017": "OCT2017"},
    "archive": {
        "brain": "Brain_AD/BraTS2021_slice",
        "liver": "Liver_AD/hist_DIY",
        "resc": "Retina_RESC_AD/RESC",
        "oct2017": "Retina_OCT2017_AD/OCT2017",
    },
    "ader": {"brain": "brain", "liver": "liver", "resc": "retinal"},
}


@dataclass(frozen=True)
class _Places:
    """Folders of training images, good and anomalous images, and masks.

    ``{split}`` is valid or test; ``{part}`` val or test, and ``{Part}`` the same with a capital.
    """

    train: str
    good: str
    ungood: str
    mask: str


_INVERTED = _Places("train/good", "{split}/img/good", "{split}/img/Ungood", "{split}/label/Ungood")
_PLACES: dict[Layout, _Places] = {
    "official": _Places(
        "train/good/img",
        "{split}/good/img",
        "{split}/Ungood/img",
        "{split}/Ungood/anomaly_mask",
    ),
    "flat": _Places("train/good", "{split}/good", "{split}/Ungood/img", "{split}/Ungood/label"),
    "inverted": _INVERTED,
    "ader": _Places("train/good", "{split}/good", "{split}/Ungood", "ground_truth/Ungood"),
}
_ARCHIVE: dict[str, _Places] = {
    "brain": _Places(
        "train/good", "{split}/good/img", "{split}/Ungood/img", "{split}/Ungood/label"
    ),
    "liver": _INVERTED,
    "resc": _Places(
        "Train/train/good",
        "{Part}/{part}/good",
        "{Part}/{part}/Ungood",
        "{Part}/{part}_label/Ungood",
    ),
    "oct2017": _Places("train/good", "{part}/good", "{part}/Ungood", ""),
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
    """Write a tree of drawings with lesions and masks, a few patients a set, in seconds.

    Masks have several levels, and in each split one anomalous image of the brain has an empty mask;
    OCT2017 is JPEG and has no masks.

    Parameters
    ----------
    out : path
        New or empty folder.
    layout : {"official", "flat", "inverted", "archive", "ader"}
        As BMAD describes itself; without the folder ``img`` of good images; with ``img`` and
        ``label`` above the classes; as its archives unpack, each in its own way, with the brain in
        matplotlib's ``bone`` colours; as ADer redistributes it, without a valid part.
    sets : sequence of str, optional
        Of brain, liver, resc and oct2017; all that the layout has by default.
    patients : mapping, optional
        Patients without and with lesions of ``train``, ``valid`` and ``test``, each of whom has
        two images; a few by default.
    size : int
        Pixels a side.
    seed : int
        Seed of all drawings.

    Raises
    ------
    ValueError
        If the layout, a set or a split is not known.
    FileExistsError
        If the folder is not empty.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not known; choose one of {LAYOUTS}.")
    folders = FOLDERS[layout]
    chosen = list(folders) if sets is None else list(sets)
    unknown = sorted(set(chosen) - set(folders))
    if unknown:
        raise ValueError(
            f"sets {unknown} are not in the layout {layout!r}; it has {list(folders)}."
        )
    counts = PATIENTS if patients is None else dict(patients)
    if not set(counts) <= set(PATIENTS) or counts.get("train", (0, 0))[1]:
        raise ValueError(
            f"patients are {counts}; expected (healthy, ill) of {list(PATIENTS)}, "
            "none ill in train."
        )
    root = Path(out)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; give a new folder.")
    for name in chosen:
        rng = np.random.default_rng([seed, list(OFFICIAL).index(name)])
        places = _ARCHIVE[name] if layout == "archive" else _PLACES[layout]
        writer = _Writer(name, root / folders[name], places, size, rng)
        writer.coloured = layout == "archive" and name == "brain"
        for split, (healthy, ill) in counts.items():
            if layout != "ader" or split != "valid":
                writer.write(split, healthy, ill)
    return root


@dataclass
class _Writer:
    """Draws and saves the images of one set."""

    name: str
    root: Path
    places: _Places
    size: int
    rng: np.random.Generator
    coloured: bool = False
    patient: int = 0

    def write(self, split: str, healthy: int, ill: int) -> None:
        """Draw a split, the healthy patients first."""
        for k in range(healthy + ill):
            self.patient += 1
            anatomy = self.rng.normal(size=4)
            for index in range(SLICES):
                image, organ = DRAWINGS[self.name](self.size, anatomy, self.rng)
                stem = f"{self.name.upper()}_{self.patient:03d}_{60 + index}"
                if k < healthy:
                    good = self.places.train if split == "train" else self.places.good
                    self._save_picture(image, self._folder(good, split), stem)
                    continue
                lesion = _lesion(organ, self.rng)
                # a slice beside the tumour, which its folder calls anomalous
                if self.name == "brain" and k == healthy and index == 0:
                    lesion[:] = False
                self._save_ill(image, lesion, split, stem)

    def _save_ill(self, image: Picture, lesion: Mask, split: str, stem: str) -> None:
        # the lesion's edge alone is soft: a blurred picture would tell its class by its sharpness
        weight = gaussian_filter(lesion.astype(np.float64), 0.6)
        shown = image + weight * (_LESION_GREY[self.name] - image)
        self._save_picture(shown, self._folder(self.places.ungood, split), stem)
        if OFFICIAL[self.name].masks:
            levels = lesion * np.where(np.arange(self.size) % 2, 1, 4) * 60
            self._save(levels, self._folder(self.places.mask, split), f"{stem}.png")

    def _folder(self, place: str, split: str) -> Path:
        part = "val" if split == "valid" else split
        return self.root / place.format(split=split, part=part, Part=part.title())

    def _save_picture(self, image: Picture, folder: Path, stem: str) -> None:
        """PNG, or JPEG for OCT2017."""
        suffix = ".jpeg" if self.name == "oct2017" else ".png"
        self._save(255 * np.clip(image, 0, 1), folder, f"{stem}{suffix}")

    def _save(self, levels: NDArray[Any], folder: Path, name: str) -> None:
        from PIL import Image

        values = levels.astype(np.uint8)
        if self.coloured:
            from matplotlib import colormaps

            values = np.asarray(colormaps["bone"](values, bytes=True))
        replace_atomically(folder / name, Image.fromarray(values).save)


def _grid(size: int) -> tuple[Picture, Picture]:
    """Coordinates from −1 to 1, down and across."""
    axis = np.linspace(-1, 1, size)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _texture(size: int, rng: np.random.Generator, sigma: float = 2.0) -> Picture:
    """Smooth noise of unit deviation."""
    noise = gaussian_filter(rng.normal(size=(size, size)), sigma)
    return np.asarray(noise / noise.std())


def _brain(size: int, anatomy: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Ellipse with a grey rim and two dark ventricles, on black."""
    y, x = _grid(size)
    a, b = 0.7 + 0.03 * anatomy[0], 0.85 + 0.03 * anatomy[1]
    radius = np.hypot(x / a, y / b)
    image = np.where(radius < 1, 0.45 + 0.08 * (radius > 0.8) + 0.03 * _texture(size, rng), 0)
    wide = 0.1 + 0.01 * anatomy[2]
    ventricles = np.hypot((np.abs(x) - 0.16) / wide, y / 0.3) < 1
    return np.where(ventricles, 0.2, image), (radius < 0.75) & ~ventricles


def _liver(size: int, anatomy: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Bean of even grey with bright vessels, on black."""
    y, x = _grid(size)
    bent = y + 0.3 * x**2 + 0.05 * anatomy[0]
    radius = np.hypot((x + 0.1) / (0.75 + 0.03 * anatomy[1]), bent / 0.55)
    vessels = _texture(size, rng, 3.0) > 1.7
    image = np.where(radius < 1, 0.55 + 0.04 * _texture(size, rng, 1.0) + 0.15 * vessels, 0)
    return image, radius < 0.8


def _retina(size: int, anatomy: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Bright layers with a pit in the middle, under a dark vitreous, with speckle."""
    y, x = _grid(size)
    surface = -0.3 + 0.05 * anatomy[0] + 0.18 * np.exp(-(x**2) / 0.05) + 0.04 * anatomy[1] * x
    depth = (y - surface) / 0.55
    inside = (depth > 0) & (depth < 1)
    layers = 0.45 + 0.2 * np.cos(6 * np.pi * depth) + 0.3 * np.exp(-(((depth - 0.92) / 0.05) ** 2))
    image = np.where(inside, layers, np.where(depth >= 1, 0.3 * np.exp(-(depth - 1)), 0.08))
    return image * np.exp(0.15 * _texture(size, rng, 0.7)), (depth > 0.25) & (depth < 0.75)


DRAWINGS: dict[str, Callable[[int, Picture, np.random.Generator], tuple[Picture, Mask]]] = {
    "brain": _brain,
    "liver": _liver,
    "resc": _retina,
    "oct2017": _retina,
}
_LESION_GREY = {"brain": 0.85, "liver": 0.25, "resc": 0.08, "oct2017": 0.08}


def _lesion(organ: Mask, rng: np.random.Generator) -> Mask:
    """A blob within the organ."""
    size = organ.shape[0]
    inside = np.argwhere(organ)
    cy, cx = inside[rng.integers(len(inside))]
    y, x = np.mgrid[:size, :size]
    radius = size * rng.uniform(0.06, 0.13) * (1 + 0.25 * _texture(size, rng, size / 20))
    return np.asarray((np.hypot(y - cy, x - cx) < radius) & organ)
