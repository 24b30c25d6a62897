"""BMAD's brain and liver sets made from the volumes they come from.

The steps are those of BMAD's own preparation as far as they are known; the released liver files
came from another script, so that exact reproduction is not possible. ``clean=True`` leaves out what
a benchmark should not have:

- one window of Hounsfield units for both CT sources. As released, training slices (BTCV) keep
  their full range and test slices (LiTS) are clipped to [−200, 250] HU: a difference between
  training and test that has nothing to do with disease;
- grey PNG instead of matplotlib's ``bone`` colours, which bend the grey scale;
- anomalous slices are those with lesion. As released, every 8th (test) or 10th (valid) slice of a
  patient is called anomalous, with tumour or without;
- masks are 0 and 255.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import HistogramNormalize, LoadImage, ScaleIntensity, ScaleIntensityRange
from numpy.typing import NDArray
from tqdm import tqdm

from mcmiad_monai.data.studies import root_message
from mcmiad_monai.data.volumes_files import VOLUME_SUFFIXES, CaseError, listing, stem_of, suffix_of
from mcmiad_monai.files import replace_atomically, write_text
from mcmiad_monai.provenance import produced_with

logger = logging.getLogger(__name__)

#: Axial slices of BraTS that BMAD uses.
BRAIN_SLICES = range(60, 100)
#: Every how many slices of that range is called anomalous, by split.
BRAIN_STEP = {"valid": 10, "test": 8}
#: Patients of 1,251 that the released counts tell of: 44 / 4 slices in valid, 3,075 / 5 in test.
BRAIN_SHARES = {"valid": 11 / 1251, "test": 615 / 1251}
#: Share of LiTS patients in valid: 166 of its 1,659 slices.
LIVER_SHARES = {"valid": 0.1}
BTCV_LIVER, LITS_LIVER, LITS_LESION = 6, 1, 2
HU_WINDOW = (-200.0, 250.0)

Plane = NDArray[Any]


@dataclass(frozen=True)
class Prepared:
    """What a preparation wrote: PNG files by folder, and volumes that could not be read."""

    root: Path
    counts: dict[str, int]
    failures: dict[str, str]


@dataclass(frozen=True)
class Pair:
    """A volume and its segmentation."""

    name: str
    image: Path
    labels: Path


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

    Axial slices as stored, without resampling, min–max per slice. Good are slices without
    segmentation. Which patients are in which split is not published: they are drawn.

    Parameters
    ----------
    source : path
        Folder with one folder a patient, or with all files.
    out : path
        New or empty folder; ``Brain_AD`` is made in it.
    clean : bool
        See the top of the module.
    slices : sequence of int
        Indices along the third axis.
    shares : dict, optional
        Share of the patients in ``valid`` and ``test``; as the released counts tell by default.
    seed : int
        Seed of the split.

    Raises
    ------
    CaseError
        If no pair of files is found.
    FileExistsError
        If the folder is not empty.
    """
    pairs = find_pairs(Path(source), "flair", "seg")
    splits = split_of(pairs, shares or BRAIN_SHARES, seed)
    root = _empty(Path(out)) / "Brain_AD"

    def planes(pair: Pair) -> Iterator[tuple[str, str, Plane, Plane]]:
        split = splits[pair.name]
        volume, labels = _load(pair)
        for k in (k for k in slices if k < volume.shape[2]):
            lesion = labels[:, :, k] > 0
            stepped = split in BRAIN_STEP and (k - slices[0]) % BRAIN_STEP[split] == 0
            ungood = bool(lesion.any()) if clean else stepped
            good = not lesion.any()
            grey = _to_bytes(volume[:, :, k])
            shown = _upright(grey) if clean else _bone(grey)
            mask = _upright(255 * lesion) if clean else labels[:, :, k]
            if ungood and split != "train" and (not clean or stepped):
                yield f"{split}/Ungood", f"{pair.name}_{k}", shown, mask
            elif good:
                yield f"{split}/good", f"{pair.name}_{k}", shown, mask

    return _write(root, pairs, planes, {"clean": clean, "seed": seed}, progress)


def prepare_liver(
    btcv: str | Path,
    lits: str | Path,
    out: str | Path,
    *,
    clean: bool = False,
    shares: dict[str, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Prepared:
    """Write ``Liver_AD``: train on BTCV (label 6 is liver), valid and test on LiTS.

    Slices with liver, min–max to 8 bit per slice, times the liver mask, flipped upside down, and
    histogram-equalised without the black outside. Lesion is label 2 of LiTS.

    Parameters
    ----------
    btcv : path
        ``img<number>.nii.gz`` and ``label<number>.nii.gz``, in subfolders or not.
    lits : path
        ``volume-<number>.nii`` and ``segmentation-<number>.nii``.
    out, clean, shares, seed
        See :func:`prepare_brain`.
    """
    healthy, ill = find_pairs(Path(btcv), "img", "label"), find_pairs(Path(lits), "volume", "seg")
    splits = split_of(ill, shares or LIVER_SHARES, seed, rest="test")
    root = _empty(Path(out)) / "Liver_AD"
    known = {pair.name for pair in healthy}

    def planes(pair: Pair) -> Iterator[tuple[str, str, Plane, Plane]]:
        volume, labels = _load(pair)
        train = pair.name in known
        liver = labels == BTCV_LIVER if train else labels >= LITS_LIVER
        for k in np.flatnonzero(liver.any((0, 1))).tolist():
            plane = _window(volume[:, :, k]) if clean or not train else volume[:, :, k]
            shown = _equalised(_to_bytes(plane) * liver[:, :, k])[::-1]
            lesion = (labels[:, :, k] == LITS_LESION)[::-1]
            if train:
                yield "train/good", f"{pair.name}_{k}", shown, lesion
            else:
                kind = "Ungood" if lesion.any() else "good"
                yield f"{splits[pair.name]}/{kind}", f"{pair.name}_{k}", shown, 255 * lesion

    return _write(root, [*healthy, *ill], planes, {"clean": clean, "seed": seed}, progress)


def find_pairs(folder: Path, image_word: str, label_word: str) -> list[Pair]:
    """Volumes and segmentations whose names are equal but for their words.

    Raises
    ------
    CaseError
        If the folder does not exist, or there is no pair or one without partner.
    """
    if not folder.is_dir():
        raise CaseError(f"{folder} is no folder; give the one with the volumes.")
    files = [p for p in sorted(folder.rglob("*")) if suffix_of(p) in VOLUME_SUFFIXES]

    def keyed(word: str) -> dict[str, Path]:
        pattern = re.compile(rf"{word}[a-z]*", re.IGNORECASE)
        return {
            pattern.sub("", stem_of(p)).strip("_-. "): p for p in files if pattern.search(p.name)
        }

    labels = keyed(label_word)
    images = {key: path for key, path in keyed(image_word).items() if path not in labels.values()}
    if not images:
        raise CaseError(
            f"{folder} holds no volume named with {image_word!r}; it has {listing(files)}."
        )
    lone = [path for key, path in images.items() if key not in labels]
    if lone:
        raise CaseError(
            f"{len(lone)} volumes of {folder} have no segmentation named with {label_word!r}: "
            f"{listing(lone, 5)}."
        )
    prefix = "" if image_word == "flair" else f"{folder.name}_"
    return [Pair(f"{prefix}{key}", path, labels[key]) for key, path in images.items()]


def split_of(
    pairs: Sequence[Pair], shares: dict[str, float], seed: int, rest: str = "train"
) -> dict[str, str]:
    """Split of each patient, drawn; shares are rounded, and each has at least one patient."""
    names = sorted(pair.name for pair in pairs)
    order = np.random.default_rng(seed).permutation(len(names))
    splits, start = dict.fromkeys(names, rest), 0
    for split, share in shares.items():
        count = max(1, round(share * len(names)))
        for i in order[start : start + count]:
            splits[names[i]] = split
        start += count
    return splits


def _load(pair: Pair) -> tuple[Plane, Plane]:
    """Volume and segmentation (X, Y, Z), as stored."""
    loader = LoadImage(image_only=True)
    volume, labels = (np.asarray(loader(path)) for path in (pair.image, pair.labels))
    if volume.ndim != 3 or volume.shape != labels.shape:
        raise CaseError(
            f"{pair.image.name} has the shape {volume.shape} and {pair.labels.name} "
            f"{labels.shape}; two equal 3-D shapes are needed."
        )
    return volume, np.rint(labels).astype(np.int16)


def _to_bytes(plane: Plane) -> Plane:
    """Min–max of a slice to 0 … 255; a slice without contrast is black."""
    if plane.max() <= plane.min():
        return np.zeros(plane.shape, np.uint8)
    scaled = ScaleIntensity(minv=0, maxv=255)(plane[None].astype(np.float32))
    return np.asarray(scaled)[0].astype(np.uint8)


def _window(plane: Plane) -> Plane:
    """Clip to the abdominal window."""
    low, high = HU_WINDOW
    clip = ScaleIntensityRange(a_min=low, a_max=high, b_min=low, b_max=high, clip=True)
    return np.asarray(clip(plane[None].astype(np.float32)))[0]


def _equalised(plane: Plane) -> Plane:
    """Histogram equalisation that leaves black out."""
    inside = plane > 0
    if not inside.any():
        return plane
    spread = HistogramNormalize(num_bins=256, min=0, max=255, mask=inside[None])
    equal = np.asarray(spread(plane[None].astype(np.float32)))[0]
    return np.where(inside, equal, 0).astype(np.uint8)


def _bone(grey: Plane) -> Plane:
    """Matplotlib's colours, (rows, columns, 3)."""
    from matplotlib import colormaps

    return np.asarray(colormaps["bone"](grey, bytes=True))[..., :3]


def _upright(plane: Plane) -> Plane:
    """Rows from front to back for arrays stored towards the left and the back, as BraTS is."""
    return np.asarray(plane).T


def _write(
    root: Path,
    pairs: Sequence[Pair],
    planes: Callable[[Pair], Iterator[tuple[str, str, Plane, Plane]]],
    options: dict[str, Any],
    progress: bool,
) -> Prepared:
    """Write the slices of every pair; a volume that fails is reported and passed over."""
    counts: Counter[str] = Counter()
    failures: dict[str, str] = {}
    for pair in tqdm(pairs, "volumes", disable=not progress):
        try:
            for folder, stem, shown, mask in planes(pair):
                _save(root / folder / "img" / f"{stem}.png", shown)
                if folder.endswith("Ungood"):
                    _save(root / folder / "anomaly_mask" / f"{stem}.png", mask)
                counts[folder] += 1
        except Exception as error:
            failures[pair.name] = root_message(error)
            logger.error("%s left out: %s", pair.name, failures[pair.name])
    content = {
        "options": options,
        "volumes": len(pairs),
        "counts": dict(counts),
        "failures": failures,
        **produced_with(),
    }
    write_text(root / "prepared.json", json.dumps(content, indent=1))
    return Prepared(root, dict(counts), failures)


def _save(path: Path, plane: Plane) -> None:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(plane).astype(np.uint8))
    replace_atomically(path, picture.save)


def _empty(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder.")
    return folder
