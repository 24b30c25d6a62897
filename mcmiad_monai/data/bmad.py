"""BMAD as its users have it on disk, in every layout that is in circulation.

Bao et al., "BMAD: Benchmarks for Medical Anomaly Detection" (CVPR Workshops 2024), and the
Uni-Medical subset that ADer redistributes. What is there is found by looking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mcmiad_monai.data.volumes import find_cases
from mcmiad_monai.data.volumes_files import (
    PICTURE_SUFFIXES,
    Case,
    CaseError,
    MissingSplitError,
    listing,
    stem_of,
    subfolders,
    suffix_of,
    visible,
    without_mask_words,
)
from mcmiad_monai.modality import get_modality

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Official:
    """A set of BMAD as it was released: its folder names, and (good, Ungood) counts by split."""

    modality: str
    folders: tuple[str, ...]
    counts: dict[Split, tuple[int, int]]
    title: str


#: Counts: BMAD's own tables. A valid part of which only the sum is published has no entry.
OFFICIAL: dict[str, Official] = {
    "brain": Official(
        "brain_mri",
        ("brain_ad", "brain"),
        {"train": (7500, 0), "val": (39, 44), "test": (640, 3075)},
        "Brain tumor (BraTS2021)",
    ),
    "liver": Official(
        "liver_ct",
        ("liver_ad", "liver"),
        {"train": (1542, 0), "val": (93, 73), "test": (833, 660)},
        "Liver tumor (BTCV + LiTS)",
    ),
    "resc": Official(
        "retina_oct",
        ("retina_resc_ad", "retina_resc", "resc_ad", "resc", "retinal"),
        {"train": (4297, 0)},
        "Retina (RESC)",
    ),
    "oct2017": Official(
        "retina_oct",
        ("retina_oct2017_ad", "retina_oct2017", "oct2017_ad", "oct2017"),
        {"train": (26315, 0), "val": (8, 24), "test": (242, 726)},
        "Retina (OCT2017)",
    ),
}
#: Published sums of good and Ungood where nothing finer is.
OFFICIAL_SUMS: dict[str, dict[Split, int]] = {"resc": {"val": 115, "test": 1805}}

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
MASK_FOLDERS = ("anomaly_mask", "label", "labels", "mask", "masks", "ground_truth")


@dataclass(frozen=True)
class ImageSet:
    """A set of images with its splits, whatever its layout.

    Attributes
    ----------
    name : str
        E.g. ``"brain"``.
    modality : str
        Name of its modality.
    root : Path
        Where it lies.
    layout : str
        How it is laid out, in words.
    splits : dict
        Cases of each split that there is: ``case``, ``image``, ``label`` (mask or None),
        ``anomalous`` (by folder) and ``patient``.
    problems : tuple of str
        What is not as it should be: images without mask, masks without image.
    """

    name: str
    modality: str
    root: Path
    layout: str
    splits: dict[Split, list[Case]] = field(repr=False)
    problems: tuple[str, ...] = ()

    def cases(self, split: Split) -> list[Case]:
        """Cases of a split; none where the set does not have it."""
        return list(self.splits.get(split, []))

    @property
    def has_masks(self) -> bool:
        """Whether any image of the test part has a lesion mask."""
        return any(case["label"] for case in self.cases("test"))

    def counts(self, split: Split) -> tuple[int, int]:
        """Good and anomalous images of a split."""
        cases = self.cases(split)
        anomalous = sum(bool(case["anomalous"]) for case in cases)
        return len(cases) - anomalous, anomalous


def find_bmad(root: str | Path) -> dict[str, ImageSet]:
    """Sets of BMAD under a folder, or the one set that the folder is.

    Accepted are ``<set>/{train,valid,test}/{good,Ungood}[/img]`` with masks in
    ``Ungood/anomaly_mask`` or ``Ungood/label``; the same with ``img`` and ``label`` above ``good``
    and ``Ungood``; and ADer's ``{train,test,ground_truth}``. Folder names in any case.

    Returns
    -------
    dict
        ``brain``, ``liver``, ``resc`` and ``oct2017``, those that there are.

    Raises
    ------
    CaseError
        If there is none, or one of them cannot be understood.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise CaseError(f"{folder} is no folder; give the one that holds BMAD's sets.")
    found: dict[str, ImageSet] = {}
    for place in (folder, *subfolders(folder)):
        name = _set_name(place)
        if name is None or not _child(place, SPLIT_NAMES["train"]):
            continue
        if name in found:
            raise CaseError(
                f"{found[name].root} and {place} are both BMAD's set {name!r}; keep one of them."
            )
        found[name] = _read_set(name, place)
    if not found:
        known = ", ".join(official.folders[0] for official in OFFICIAL.values())
        raise CaseError(
            f"no set of BMAD in {folder}, which holds {listing(visible(folder))}. Expected folders "
            f"such as {known} (also without _AD, or ADer's brain, liver, retinal), each with a "
            "folder train."
        )
    return {name: found[name] for name in OFFICIAL if name in found}


def own_set(root: str | Path, modality: str) -> ImageSet:
    """Images of one's own as a set: normal studies to train on, optional val and test studies.

    Parameters
    ----------
    root : path
        See :func:`~mcmiad_monai.data.volumes.find_cases`.
    modality : str
        Name of the modality.
    """
    splits: dict[Split, list[Case]] = {}
    for split in SPLITS:
        try:
            splits[split] = find_cases(root, split)
        except MissingSplitError:
            continue
    return ImageSet(Path(root).name, get_modality(modality).name, Path(root), "own", splits)


def patient_of_name(stem: str) -> str:
    """Patient that a file name tells of: what stands before its last group of digits.

    ``BraTS2021_00123_78`` is slice 78 of ``BraTS2021_00123``. It is a guess: BMAD keeps no list of
    patients. A name with fewer than two groups is a patient of its own.
    """
    head = stem.rstrip("0123456789")
    patient = head.rstrip("_- .")
    if head in (stem, patient) or not any(c.isdigit() for c in patient):
        return stem
    return patient


def _set_name(folder: Path) -> str | None:
    """Which set a folder is, by its name."""
    lower = folder.name.lower()
    return next((name for name, official in OFFICIAL.items() if lower in official.folders), None)


def _read_set(name: str, root: Path) -> ImageSet:
    """All splits of a set."""
    splits: dict[Split, list[Case]] = {}
    layouts, problems = [], []
    for split, names in SPLIT_NAMES.items():
        part = _child(root, names)
        if part is None:
            continue
        cases: list[Case] = []
        for kind in ("good", "ungood"):
            images, how = _images(part, kind)
            masks = _masks(root, part) if kind == "ungood" else {}
            cases += [_case(name, split, kind, image, masks) for image in images]
            if images:
                layouts.append(how)
            if kind == "ungood":
                problems += _mask_problems(part, images, masks)
        splits[split] = cases
    if not any(not case["anomalous"] for case in splits.get("train", [])):
        raise CaseError(
            f"{root} looks like BMAD's set {name!r}, but no image was found for train/good: it "
            f"holds {listing(visible(root))}, and train holds "
            f"{listing(visible(_child(root, SPLIT_NAMES['train']) or root))}. Expected "
            "train/good/*.png, train/good/img/*.png or train/img/good/*.png."
        )
    layout = ", ".join(dict.fromkeys(layouts))
    if _child(root, ("ground_truth",)):
        layout += ", masks in ground_truth"
    return ImageSet(name, OFFICIAL[name].modality, root, layout, splits, tuple(problems))


def _images(part: Path, kind: str) -> tuple[list[Path], str]:
    """Images of a class in a split, and the layout in which they were found."""
    direct, above = _child(part, (kind,)), _child(part, ("img", "image", "images"))
    places = {
        "<class>/img": direct and _child(direct, ("img", "image", "images")),
        "<class>": direct,
        "img/<class>": above and _child(above, (kind,)),
    }
    for how, place in places.items():
        images = _pictures(place)
        if images:
            return images, how
    return [], ""


def _masks(root: Path, part: Path) -> dict[str, Path]:
    """Masks of the anomalous images of a split, by the stem of their image."""
    ungood, truth = _child(part, ("ungood",)), _child(root, ("ground_truth",))
    places = [ungood and _child(ungood, MASK_FOLDERS)]
    above = [_child(part, (name,)) for name in MASK_FOLDERS]
    places += [folder and _child(folder, ("ungood",)) for folder in above]
    if truth is not None:
        inner = _child(truth, (part.name.lower(),)) or truth
        places.append(_child(inner, ("ungood",)))
    for place in places:
        found = _pictures(place)
        if found:
            return {without_mask_words(path) or stem_of(path): path for path in found}
    return {}


def _case(name: str, split: str, kind: str, image: Path, masks: dict[str, Path]) -> Case:
    mask = masks.get(stem_of(image))
    return {
        "case": f"{name}_{split}_{kind}_{stem_of(image)}",
        "image": str(image),
        "label": None if mask is None else str(mask),
        "anomalous": kind == "ungood",
        "patient": f"{name}_{patient_of_name(stem_of(image))}",
    }


def _mask_problems(part: Path, images: Sequence[Path], masks: dict[str, Path]) -> list[str]:
    """Images without mask and masks without image, in a split that has both."""
    if not masks or not images:
        return []
    stems = {stem_of(image) for image in images}
    bare = [image for image in images if stem_of(image) not in masks]
    lone = [path for stem, path in masks.items() if stem not in stems]
    told = []
    if bare:
        told.append(f"{part}: {len(bare)} anomalous images have no mask: {listing(bare, 5)}")
    if lone:
        told.append(f"{part}: {len(lone)} masks have no image: {listing(lone, 5)}")
    return told


def _pictures(folder: Path | None) -> list[Path]:
    """Image files directly in a folder."""
    if folder is None:
        return []
    return [p for p in visible(folder) if p.is_file() and suffix_of(p) in PICTURE_SUFFIXES]


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    """A folder's subfolder with one of these names, in any case, the first name first."""
    by_name = {path.name.lower(): path for path in subfolders(folder)}
    return next((by_name[name] for name in names if name in by_name), None)
