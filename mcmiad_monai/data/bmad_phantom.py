"""A small generated tree in the layouts of BMAD, to try commands on and to test them.

The drawings are heads, livers and retinas only in outline: they show that the software works, and
say nothing about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mcmiad_monai.data.bmad import OFFICIAL
from mcmiad_monai.files import replace_atomically

Layout = Literal["official", "flat", "inverted", "ader"]
Picture = NDArray[np.float64]
Mask = NDArray[np.bool_]

LAYOUTS: tuple[Layout, ...] = ("official", "flat", "inverted", "ader")
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
    "ader": {"brain": "brain", "liver": "liver", "resc": "retinal"},
}


@dataclass(frozen=True)
class _Places:
    """Folders of good images, anomalous images and masks, with {split}."""

    good: str
    ungood: str
    mask: str


_PLACES: dict[Layout, _Places] = {
    "official": _Places("{split}/good/img", "{split}/Ungood/img", "{split}/Ungood/anomaly_mask"),
    "flat": _Places("{split}/good", "{split}/Ungood/img", "{split}/Ungood/label"),
    "inverted": _Places("{split}/img/good", "{split}/img/Ungood", "{split}/label/Ungood"),
    "ader": _Places("{split}/good", "{split}/Ungood", "ground_truth/Ungood"),
}


def write_bmad_phantom(
    out: str | Path,
    *,
    layout: Layout = "official",
    sets: Sequence[str] | None = None,
    size: int = 96,
    seed: int = 0,
) -> Path:
    """Write a tree of drawings with lesions and masks, a few patients a set, in seconds.

    Masks of the brain have several levels and one of its anomalous images has an empty mask, as in
    the release; OCT2017 is JPEG and has no masks.

    Parameters
    ----------
    out : path
        New or empty folder.
    layout : {"official", "flat", "inverted", "ader"}
        As BMAD was released; without the folder ``img`` of good images; with ``img`` and ``label``
        above the classes; as ADer redistributes it, without a valid part.
    sets : sequence of str, optional
        Of brain, liver, resc and oct2017; all that the layout has by default.
    size : int
        Pixels a side.
    seed : int
        Seed of all drawings.

    Raises
    ------
    ValueError
        If the layout or a set is not known.
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
    root = Path(out)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; give a new folder.")
    for name in chosen:
        rng = np.random.default_rng([seed, list(OFFICIAL).index(name)])
        _write_set(name, root / folders[name], layout, size, rng)
    return root


def _write_set(name: str, root: Path, layout: Layout, size: int, rng: np.random.Generator) -> None:
    places, patient = _PLACES[layout], 0
    for split, (healthy, ill) in PATIENTS.items():
        if layout == "ader" and split == "valid":
            continue
        for k in range(healthy + ill):
            patient += 1
            anatomy = rng.normal(size=4)
            for index in range(SLICES):
                image, organ = DRAWINGS[name](size, anatomy, rng)
                stem = f"{name.upper()}_{patient:03d}_{60 + index}"
                if k < healthy:
                    _save(image, root / places.good.format(split=split), stem, name)
                    continue
                lesion = _lesion(organ, rng)
                # a slice beside the tumour, which its folder calls anomalous
                if name == "brain" and k == healthy and index == 0:
                    lesion[:] = False
                shown = np.where(lesion, _LESION_GREY[name], image)
                _save(
                    gaussian_filter(shown, 0.6),
                    root / places.ungood.format(split=split),
                    stem,
                    name,
                )
                if name != "oct2017":
                    levels = lesion * np.where(np.arange(size) % 2, 1, 4) * 60
                    _save_mask(levels, root / places.mask.format(split=split), stem)


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


def _save(image: Picture, folder: Path, stem: str, name: str) -> None:
    """PNG, or JPEG for OCT2017."""
    from PIL import Image

    grey = Image.fromarray((255 * np.clip(image, 0, 1)).astype(np.uint8))
    suffix = ".jpeg" if name == "oct2017" else ".png"
    replace_atomically(folder / f"{stem}{suffix}", grey.save)


def _save_mask(levels: NDArray[np.int64], folder: Path, stem: str) -> None:
    from PIL import Image

    mask = Image.fromarray(levels.astype(np.uint8))
    replace_atomically(folder / f"{stem}.png", mask.save)
