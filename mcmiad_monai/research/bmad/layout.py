"""Where the images and masks of a set of BMAD lie, and the volumes that it is made from.

The released archives differ from each other: brain has ``test/Ungood/{img,label}`` in a folder
``BraTS2021_slice``, liver ``test/{img,label}/Ungood`` in ``hist_DIY``, RESC
``Test/{test,test_label}/Ungood``, OCT2017 ``test/Ungood``; redistributions differ again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from mcmiad_monai.data.cases.names import (
    CaseError,
    listing,
    stem_of,
    subfolders,
    visible,
    without_mask_words,
)
from mcmiad_monai.files.formats import PICTURE_SUFFIXES, VOLUME_SUFFIXES, suffix_of

Split = Literal["train", "val", "test"]
Kind = Literal["good", "ungood"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
KINDS: tuple[Kind, ...] = ("good", "ungood")
IMAGE_FOLDERS = ("img", "image", "images")
MASK_FOLDERS = ("anomaly_mask", "label", "labels", "mask", "masks", "ground_truth")
#: How far below the folder that is given a set may lie: ``BMAD/Liver_AD/Liver/Train/hist_DIY``.
DEPTH = 4
#: What macOS puts beside the content of an archive.
LITTER = "__macosx"


@dataclass(frozen=True)
class Part:
    """One split of a set on disk.

    Attributes
    ----------
    folder : Path
    images : dict
        Images by class.
    masks : list of Path
        Masks of the anomalous images.
    layout : list of str
        Where the images of each class were found, in words.
    """

    folder: Path
    images: dict[Kind, list[Path]]
    masks: list[Path]
    layout: list[str] = field(default_factory=list)

    def mask_of(self, image: Path) -> Path | None:
        """The mask with the image's name, or with that name and a word such as _mask."""
        return self._by_name.get(stem_of(image))

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        words = {without_mask_words(mask): mask for mask in self.masks}
        return {**words, **{stem_of(mask): mask for mask in self.masks}}


@dataclass(frozen=True)
class Pair:
    """A volume and its segmentation, which may be missing."""

    name: str
    image: Path
    labels: Path | None


def find_sets(
    folder: Path, name_of: Callable[[str], str | None], depth: int = DEPTH, name: str | None = None
) -> Iterator[tuple[str | None, Path]]:
    """Folders that are laid out like a set, with the set's name.

    The name is that of the folder itself or else of the nearest one above it that has one.

    Parameters
    ----------
    folder : Path
        Folder to search, `depth` levels deep.
    name_of : callable
        Name of the set that a folder name stands for, or None.
    name : str, optional
        Name from the folders above.
    """
    name = name_of(folder.name) or name
    if _is_set(folder):
        yield name, folder
        return
    for child in _folders(folder) if depth else ():
        yield from find_sets(child, name_of, depth - 1, name)


def read_part(root: Path, split: Split) -> Part | None:
    """A split of a set, or None if it has none."""
    folder = child(root, SPLIT_NAMES[split])
    if folder is None:
        return None
    images: dict[Kind, list[Path]] = {}
    layout = []
    for kind in KINDS:
        images[kind], how = _images(folder, kind)
        layout += [how] if images[kind] else []
    return Part(folder, images, _masks(root, folder, split), layout)


def mask_problems(part: Part, *, masks_expected: bool) -> list[str]:
    """What does not match between the anomalous images of a split and its masks.

    Parameters
    ----------
    masks_expected : bool
        Whether it is a fault that a split has no masks at all.
    """
    images = part.images["ungood"]
    if not part.masks and not masks_expected:
        return []
    stems = {stem_of(image) for image in images}
    bare = [image for image in images if part.mask_of(image) is None]
    lone = [m for m in part.masks if stems.isdisjoint({stem_of(m), without_mask_words(m)})]
    found = {"anomalous images have no mask": bare, "masks have no image": lone}
    return [
        f"{part.folder}: {len(paths)} {problem}: {listing(paths, 5)}"
        for problem, paths in found.items()
        if paths
    ]


def find_pairs(folder: Path, image_word: str, label_word: str, *, prefix: str = "") -> list[Pair]:
    """Volumes and segmentations whose names are equal but for their words.

    Parameters
    ----------
    folder : Path
        It and all folders below are looked through.
    image_word, label_word : str
        Word in the names of volumes, and in those of segmentations.
    prefix : str
        Put before every name.

    Raises
    ------
    CaseError
        If the folder does not exist, no volume has a segmentation, or a volume is there twice.
    """
    if not folder.is_dir():
        raise CaseError(f"{folder} is no folder; give the one with the volumes.")
    files = [p for p in sorted(folder.rglob("*")) if suffix_of(p) in VOLUME_SUFFIXES]
    files = [p for p in files if not p.name.startswith(".")]
    labels = _keyed(files, label_word)
    images = _keyed([p for p in files if p not in labels.values()], image_word)
    if not images:
        raise CaseError(
            f"{folder} holds no volume named with {image_word!r}; it has {listing(files)}."
        )
    if not labels.keys() & images.keys():
        raise CaseError(
            f"none of the {len(images)} volumes of {folder} has a segmentation named with "
            f"{label_word!r}: {listing(list(images.values()), 5)}."
        )
    return [Pair(f"{prefix}{key}", path, labels.get(key)) for key, path in images.items()]


def child(folder: Path, names: Collection[str]) -> Path | None:
    """A folder's subfolder with one of these names, in any case, the first name first."""
    by_name = {path.name.lower(): path for path in _folders(folder)}
    return next((by_name[name] for name in names if name in by_name), None)


def _is_set(folder: Path) -> bool:
    """Whether a folder has a split in which there are classes."""
    parts = [child(folder, names) for names in SPLIT_NAMES.values()]
    return any(part and _class_folders(part, kind) for part in parts for kind in KINDS)


def _class_folders(part: Path, kind: Kind) -> dict[str, Path]:
    """Folders of a class in a split that may hold its images, by their layout in words."""
    places: dict[str, Path | None] = {}
    direct = child(part, (kind,))
    if direct is not None:
        places["<class>/img"] = child(direct, IMAGE_FOLDERS)
        places["<class>"] = direct
    for how, names in (("img", IMAGE_FOLDERS), ("<split>", (part.name.lower(),))):
        above = child(part, names)
        places[f"{how}/<class>"] = above and child(above, (kind,))
    return {how: place for how, place in places.items() if place is not None}


def _images(part: Path, kind: Kind) -> tuple[list[Path], str]:
    """Images of a class in a split, and the layout in which they were found."""
    for how, place in _class_folders(part, kind).items():
        images = _pictures(place)
        if images:
            return images, how
    return [], ""


def _masks(root: Path, part: Path, split: Split) -> list[Path]:
    """Masks of the anomalous images of a split."""
    names = (*MASK_FOLDERS, f"{part.name.lower()}_label")
    ungood = child(part, ("ungood",))
    above = [child(part, (name,)) for name in names]
    places = [
        ungood and child(ungood, names),
        *(folder and child(folder, ("ungood",)) for folder in above),
        *_ground_truth(root, part, split),
    ]
    return next((found for place in places if (found := _pictures(place))), [])


def _ground_truth(root: Path, part: Path, split: Split) -> Sequence[Path | None]:
    """Where masks of a split may lie in a folder beside the splits, which is the test part's."""
    truth = child(root, ("ground_truth",))
    if truth is None:
        return []
    own = child(truth, (part.name.lower(),))
    if own is None and split != "test":
        return []
    return [child(own or truth, ("ungood",)), own or truth]


def _pictures(folder: Path | None) -> list[Path]:
    """Image files directly in a folder."""
    if folder is None:
        return []
    return [p for p in visible(folder) if suffix_of(p) in PICTURE_SUFFIXES and p.is_file()]


def _folders(folder: Path) -> list[Path]:
    """Subfolders that may matter; none of a folder that may not be read."""
    try:
        return [path for path in subfolders(folder) if path.name.lower() != LITTER]
    except PermissionError:
        return []


def _keyed(files: Sequence[Path], word: str) -> dict[str, Path]:
    """Files named with a word, by the rest of their names."""
    pattern, found = re.compile(rf"{word}[a-z]*", re.IGNORECASE), dict[str, Path]()
    for path in files:
        stem = stem_of(path)
        if not pattern.search(stem):
            continue
        key = pattern.sub("", stem).strip("_-. ")
        if key in found:
            raise CaseError(f"{found[key]} and {path} are the same volume; keep one of them.")
        found[key] = path
    return found
