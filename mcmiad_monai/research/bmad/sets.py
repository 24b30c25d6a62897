"""BMAD as its users have it on disk, in every layout that is in circulation.

Bao et al., "BMAD: Benchmarks for Medical Anomaly Detection" (CVPR Workshops 2024), and the
Uni-Medical subset that ADer redistributes. What is there is found by looking.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from monai.transforms import Compose

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.data.cases.names import (
    Case,
    CaseError,
    MissingSplitError,
    listing,
    stem_of,
    visible,
)
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.files.formats import PICTURE_SUFFIXES, suffix_of
from mcmiad_monai.modality import get_modality
from mcmiad_monai.research.bmad.layout import (
    Part,
    Split,
    child,
    find_sets,
    mask_problems,
    read_part,
)
from mcmiad_monai.transforms import preprocessing

SPLITS: tuple[Split, ...] = ("train", "val", "test")
#: What of a mask is lesion: all above 0, or white alone, as the fork of anomalib that made BMAD's
#: own figures reads masks: ``(mask / 255).int()``.
Masks = Literal["any", "white"]
WHITE = 255


@dataclass(frozen=True)
class Official:
    """A set of BMAD as it was released.

    Attributes
    ----------
    modality : str
    folders : tuple of str
        Names that its folder has, in lower case without separators and without ``_AD``.
    counts : dict
        Good and Ungood images by split.
    masks : bool
        Whether anomalous images have masks.
    """

    modality: str
    folders: tuple[str, ...]
    counts: dict[Split, tuple[int, int]]
    masks: bool = True


#: Counts: BMAD's own tables. A valid part of which only the sum is published has no entry.
OFFICIAL: dict[str, Official] = {
    "brain": Official(
        "brain_mri",
        ("brain", "brats2021slice"),
        {"train": (7500, 0), "val": (39, 44), "test": (640, 3075)},
    ),
    "liver": Official(
        "liver_ct", ("liver", "histdiy"), {"train": (1542, 0), "val": (93, 73), "test": (833, 660)}
    ),
    "resc": Official("retina_oct", ("retinaresc", "resc", "retinal"), {"train": (4297, 0)}),
    "oct2017": Official(
        "retina_oct",
        ("retinaoct2017", "oct2017"),
        {"train": (26315, 0), "val": (8, 24), "test": (242, 726)},
        masks=False,
    ),
}
#: Published sums of good and Ungood where nothing finer is.
OFFICIAL_SUMS: dict[str, dict[Split, int]] = {"resc": {"val": 115, "test": 1805}}


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
        ``anomalous`` (by folder) and ``patient``. A volume of one's own to test on has None for
        ``anomalous`` where no folder tells: its mask judges slice by slice.
    problems : tuple of str
        What is not as it should be: images without mask, masks without image.
    masks : {"any", "white"}
        What of a mask is lesion: all above 0, or 255 alone.
    """

    name: str
    modality: str
    root: Path
    layout: str
    splits: dict[Split, list[Case]] = field(repr=False)
    problems: tuple[str, ...] = ()
    masks: Masks = "any"

    def transform(self, **options: Any) -> Compose:
        """From a case to its volume ``image``, prepared by `options`, and its mask ``label``."""
        lesion = WHITE if self.masks == "white" else None
        return preprocessing(self.modality, mask_key="label", mask_label=lesion, **options)

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


def find_bmad(root: str | Path, *, masks: Masks = "any") -> dict[str, ImageSet]:
    """Sets of BMAD under a folder, or the one set that the folder is.

    Accepted are ``<set>/{train,valid,test}/{good,Ungood}[/img]`` with masks in
    ``Ungood/anomaly_mask`` or ``Ungood/label``; the same with ``img`` and ``label`` above ``good``
    and ``Ungood``; RESC's ``Test/{test,test_label}/{good,Ungood}``; and ADer's
    ``{train,test,ground_truth}``. Folder names in any case; folders around a set, as archives have
    them, are looked through. Splits may be missing: some redistributions have no train, some no
    valid part.

    Parameters
    ----------
    masks : {"any", "white"}
        What of a mask is lesion: all above 0, or 255 alone, as in the figures made with BMAD's own
        code. Brain masks are in ``bone`` colours, of which white is the highest label of a slice.

    Returns
    -------
    dict
        ``brain``, ``liver``, ``resc`` and ``oct2017``, those that there are.

    Raises
    ------
    CaseError
        If there is none, one of them is there twice, or one cannot be understood.
    ValueError
        If the reading of masks is not known.
    """
    if masks not in get_args(Masks):
        raise ValueError(f"masks are {masks!r}; choose one of {get_args(Masks)}.")
    folder = _absolute(root)
    if not folder.is_dir():
        raise CaseError(f"{folder} is no folder; give the one that holds BMAD's sets.")
    found: dict[str, ImageSet] = {}
    nameless: list[Path] = []
    for name, place in find_sets(folder, _set_name):
        if name is None:
            nameless.append(place)
            continue
        if name in found:
            raise CaseError(
                f"{found[name].root} and {place} are both BMAD's set {name!r}; keep one of them, "
                "or give the folder of one."
            )
        found[name] = _read_set(name, place, masks)
    if not found:
        raise CaseError(_nothing(folder, nameless))
    return {name: found[name] for name in OFFICIAL if name in found}


def own_set(root: str | Path, modality: str) -> ImageSet:
    """Images of one's own as a set: normal studies to train on, optional val and test studies.

    Where folders do not say whether a study is anomalous, its mask does: a picture with a mask is
    anomalous, and so is a volume with a mask outside the test part, which keeps it from being taken
    for normal. The slices of a test volume are judged one by one by its mask.

    An image is never in test as well as in train: a folder without splits is all train.

    Parameters
    ----------
    root : path
        See :func:`~mcmiad_monai.data.cases.find.find_cases`.
    modality : str
        Name of the modality.

    Raises
    ------
    CaseError
        If there is no training part.
    """
    path, kind = _absolute(root), get_modality(modality).name
    splits: dict[Split, list[Case]] = {}
    for split in SPLITS:
        try:
            cases = find_cases(path, split)
        except MissingSplitError:
            if split == "train":
                raise
            continue
        if refused := [case["refused"] for case in cases if "refused" in case]:
            raise CaseError(refused[0])
        trained = {case["image"] for case in splits.get("train", [])}
        splits[split] = [_own(c, split) for c in cases if c["image"] not in trained]
    name = path.parent.name if path.is_file() else path.name
    return ImageSet(name, kind, path, "own", splits)


def patient_of_name(stem: str) -> str:
    """Patient that a file name tells of: what stands before its last group of digits.

    ``BraTS2021_00123_78`` is slice 78 of ``BraTS2021_00123``, and ``00123_78`` of ``00123``. It is
    a guess: BMAD keeps no list of patients. A name with fewer than two groups is a patient of its
    own.
    """
    head = stem.rstrip("0123456789")
    patient = head.rstrip("_- .")
    if head in (stem, patient) or not any(c.isdigit() for c in patient):
        return stem
    return patient


def _absolute(path: str | Path) -> Path:
    """A path with a name of its own, also for ``.``; symbolic links keep their names."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 (resolve follows links)


def _set_name(folder: str) -> str | None:
    """Which set a folder is, by its name."""
    letters = "".join(c for c in folder.lower() if c.isalnum()).removesuffix("ad")
    return next((name for name, official in OFFICIAL.items() if letters in official.folders), None)


def _nothing(folder: Path, nameless: list[Path]) -> str:
    """That no set was found, what there is, and what was expected."""
    known = "Brain_AD, Liver_AD, Retina_RESC_AD or Retina_OCT2017_AD"
    if nameless:
        return (
            f"{listing(nameless, 5)} in {folder} have splits with good and Ungood, but no name "
            f"tells which of BMAD's sets they are. Name them {known}, or use them as images of "
            "your own."
        )
    return (
        f"no set of BMAD in {folder}, which holds {listing(visible(folder))}. Expected folders "
        f"such as {known} (also without _AD, or ADer's brain, liver, retinal), each with train, "
        "valid or test, and in these good and Ungood."
    )


def _read_set(name: str, root: Path, masks: Masks) -> ImageSet:
    """All splits of a set."""
    parts = {split: part for split in SPLITS if (part := read_part(root, split))}
    if "train" in parts and not parts["train"].images["good"]:
        folder = parts["train"].folder
        raise CaseError(
            f"{root} looks like BMAD's set {name!r}, but no image was found for train/good: it "
            f"holds {listing(visible(root))}, and {folder.name} holds {listing(visible(folder))}. "
            "Expected train/good/*.png, train/good/img/*.png or train/img/good/*.png."
        )
    splits = {split: _cases(name, split, part) for split, part in parts.items()}
    problems = [
        problem
        for part in parts.values()
        for problem in mask_problems(part, masks_expected=OFFICIAL[name].masks)
    ]
    layout = ", ".join(dict.fromkeys(how for part in parts.values() for how in part.layout))
    if child(root, ("ground_truth",)):
        layout += ", masks in ground_truth"
    modality = OFFICIAL[name].modality
    return ImageSet(name, modality, root, layout, splits, tuple(problems), masks)


def _cases(name: str, split: Split, part: Part) -> list[Case]:
    """Cases of a split, the good ones first."""
    cases = []
    for kind, images in part.images.items():
        stems = Counter(stem_of(image) for image in images)
        for image in images:
            title = stem_of(image) if stems[stem_of(image)] == 1 else image.name
            mask = part.mask_of(image) if kind == "ungood" else None
            case = f"{name}_{split}_{kind}_{title}"
            cases.append(
                {
                    "case": case,
                    "image": str(image),
                    "label": None if mask is None else str(mask),
                    "anomalous": kind == "ungood",
                    "patient": _patient(name, stem_of(image)) or case,
                }
            )
    return cases


def _patient(name: str, stem: str) -> str | None:
    """Patient of an image; None for a bare number, which other splits use for others."""
    patient = patient_of_name(stem)
    return None if patient == stem else f"{name}_{patient}"


def _own(case: Case, split: Split) -> Case:
    """A case of one's own with all that a case of BMAD has."""
    anomalous = case["anomalous"]
    picture = suffix_of(Path(case["image"])) in PICTURE_SUFFIXES
    if anomalous is None and (picture or split != "test"):
        anomalous = case["label"] is not None
    return {**case, "anomalous": anomalous, "patient": patient_of(case)}
