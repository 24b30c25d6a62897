"""Cases in a folder: flat, one folder a case, DICOM series, or good and Ungood side by side."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from mcmiad_monai.data.cases.names import (
    MASK_WORDS,
    Case,
    CaseError,
    has_name,
    image_files,
    is_dicom_series,
    is_mask,
    is_organ_mask,
    listing,
    stem_of,
    subfolders,
    visible,
    without_mask_words,
    words_of,
)
from mcmiad_monai.data.cases.nnunet import find_in_nnunet, nnunet_folders
from mcmiad_monai.files.formats import PICTURE_SUFFIXES, suffix_of

# BMAD's names for normal and abnormal images; a label of the whole image, not of its pixels.
NORMAL_FOLDERS = frozenset({"good", "normal", "healthy"})
ANOMALOUS_FOLDERS = frozenset({"ungood", "abnormal", "anomalous", "bad"})
# Folders that only hold images and say nothing about a case.
IMAGE_FOLDERS = frozenset({"img", "imgs", "image", "images"})
# BIDS: the file at the top of every data set, and how names of subjects begin.
BIDS_DESCRIPTION, SUBJECT = "dataset_description.json", "sub-"
# Folders that only hold masks; "lesion" is left out, it may as well hold images with lesions.
MASK_FOLDERS = (MASK_WORDS - {"lesion", "lesions"}) | {
    "anomaly_mask",
    "ground_truth",
    "groundtruth",
}


@dataclass(frozen=True)
class Wanted:
    """Which of several files in a case to take, by words of their names."""

    image_name: str | None = None
    mask_name: str | None = None


def find_in_folder(folder: Path, wanted: Wanted) -> list[Case]:
    """Cases of one folder, deeper folders included; an empty list if there are none.

    What is not clear is one case with the reason under ``refused``, and the others are found.

    Raises
    ------
    CaseError
        If anything is not clear in folders named good or Ungood.
    """
    classes = class_folders(folder)
    if classes:
        _check_classes(folder, classes)
        return [
            {**case, "anomalous": anomalous}
            for path, anomalous in classes
            for case in _all_clear(find_in_folder(path, wanted))
        ]
    cases = _or_refused(_series, folder, wanted) + _or_refused(_files, folder, wanted)
    for path in case_folders(folder):
        cases += _or_refused(_case_folder, path, wanted)
    return cases


def _or_refused(
    find: Callable[[Path, Wanted], list[Case]], folder: Path, wanted: Wanted
) -> list[Case]:
    """The cases of a folder, or one case that says why they are refused."""
    try:
        return find(folder, wanted)
    except CaseError as error:
        return [{**_case(folder.name, folder, None), "refused": str(error)}]


def _all_clear(cases: list[Case]) -> list[Case]:
    for case in cases:
        if "refused" in case:
            raise CaseError(case["refused"])
    return cases


def class_folders(folder: Path) -> list[tuple[Path, bool]]:
    """Folders named good or Ungood (or alike), each with whether its images are anomalous."""
    names = [(path, path.name.lower()) for path in subfolders(folder)]
    known = NORMAL_FOLDERS | ANOMALOUS_FOLDERS
    return [(path, name in ANOMALOUS_FOLDERS) for path, name in names if name in known]


def _check_classes(folder: Path, classes: list[tuple[Path, bool]]) -> None:
    """No images lie beside the folders good and Ungood, where they would be passed over."""
    known = {path for path, _ in classes}
    strays = [path for path in case_folders(folder) if path not in known and any(path.iterdir())]
    strays += image_files(folder)
    if strays:
        raise CaseError(
            f"{folder} has {listing(sorted(known))} and beside them {listing(strays)}, of which it "
            f"is not clear whether it is normal. Normal images go into one of "
            f"{sorted(NORMAL_FOLDERS)}, others into one of {sorted(ANOMALOUS_FOLDERS)}."
        )


def case_folders(folder: Path) -> list[Path]:
    """Subfolders that may hold cases of their own; of a BIDS data set those of its subjects."""
    special = IMAGE_FOLDERS | MASK_FOLDERS
    folders = [path for path in subfolders(folder) if path.name.lower() not in special]
    subjects = [path for path in folders if path.name.startswith(SUBJECT)]
    return subjects if subjects and (folder / BIDS_DESCRIPTION).is_file() else folders


def _files(folder: Path, wanted: Wanted) -> list[Case]:
    """Every image file of a folder, or of the folder of images in it, as a case of its own."""
    images, masks = _images_and_masks(folder)
    organs = [path for path in masks if is_organ_mask(path)]
    masks = [path for path in masks if path not in organs]
    images = _choose(images, wanted.image_name, folder, "image_name")
    if not images:
        return []
    masks = _choose(masks, wanted.mask_name, folder, "mask_name")
    labels, regions = _match(images, masks, folder), _match(images, organs, folder, lesions=False)
    return [_case(stem_of(path), path, labels.get(path), regions.get(path)) for path in images]


def _images_and_masks(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images and masks of a folder, by their names or by those of its folders of images."""
    direct = image_files(folder)
    images = [path for path in direct if not is_mask(path)]
    masks = [path for path in direct if is_mask(path)]
    for path in subfolders(folder):
        name = path.name.lower()
        if name in IMAGE_FOLDERS:
            images += image_files(path)
        elif name in MASK_FOLDERS:
            masks += image_files(path)
    if beside_series(folder):
        images = [path for path in images if suffix_of(path) not in PICTURE_SUFFIXES]
    return images, masks


def beside_series(folder: Path) -> bool:
    """Whether a folder holds a DICOM series, beside which pictures are no studies.

    A single slice is none: it may be a stray among them.
    """
    return is_dicom_series(folder, at_least=2)


def _case_folder(folder: Path, wanted: Wanted) -> list[Case]:
    """A folder that is one case, or that holds further folders or pictures."""
    if layout := nnunet_folders(folder):
        return find_in_nnunet(layout, "all", wanted.image_name)
    images, masks = _images_and_masks(folder)
    if not _is_one_case(folder, images):
        return find_in_folder(folder, wanted)
    chosen = _choose(images, wanted.image_name, folder, "image_name")
    if not chosen:
        return []
    if _are_runs(chosen):
        return _files(folder, wanted)
    image = _only(chosen, None, folder, "image_name")
    name = stem_of(image) if image.name.startswith(SUBJECT) else folder.name
    return [_case(name, image, *_lesion_and_organ(masks, wanted, folder))]


def _are_runs(images: list[Path]) -> bool:
    """Whether files are of one BIDS suffix, as ``sub-1_run-1_FLAIR`` and ``sub-1_run-2_FLAIR``."""
    suffixes = {stem_of(path).rpartition("_")[2] for path in images}
    in_bids = all(path.name.startswith(SUBJECT) for path in images)
    return in_bids and len(images) > 1 and len(suffixes) == 1


def is_one_case(folder: Path) -> bool:
    """Whether a folder in a folder of cases is one case, so that folders in it are not read."""
    return _is_one_case(folder, _images_and_masks(folder)[0])


def _is_one_case(folder: Path, images: list[Path]) -> bool:
    pictures = all(suffix_of(path) in PICTURE_SUFFIXES for path in images)
    return bool(images) and not (pictures and len(images) > 1) and not is_dicom_series(folder)


def _series(folder: Path, wanted: Wanted) -> list[Case]:
    """A DICOM series, if there is one; a mask file beside its slices and no other image is its."""
    if not is_dicom_series(folder):
        return []
    images, _ = _images_and_masks(folder)
    masks = [] if images else [path for path in image_files(folder) if is_mask(path)]
    return [_case(folder.name, folder, *_lesion_and_organ(masks, wanted, folder))]


def _lesion_and_organ(
    masks: list[Path], wanted: Wanted, folder: Path
) -> tuple[Path | None, Path | None]:
    """The lesion mask and the organ mask of a folder that is one case."""
    organs = [path for path in masks if is_organ_mask(path)]
    lesions = [path for path in masks if path not in organs]
    if len(organs) > 1:
        raise CaseError(
            f"{folder} holds {len(organs)} organ masks ({listing(organs)}); one is "
            "needed. Take the others out of the folder."
        )
    lesion = _only(lesions, wanted.mask_name, folder, "mask_name") if lesions else None
    return lesion, organs[0] if organs else None


def _case(name: str, image: Path, label: Path | None, organ: Path | None = None) -> Case:
    """A case dictionary whose image-level label is not known yet."""
    return {
        "case": name,
        "image": str(image),
        "label": None if label is None else str(label),
        **({} if organ is None else {"organ": str(organ)}),
        "anomalous": None,
    }


def _choose(paths: list[Path], name: str | None, folder: Path, option: str) -> list[Path]:
    """The files with the wanted name, all of them if none is wanted; it may be no image's."""
    if name is None or not paths:
        return paths
    chosen = [path for path in paths if has_name(path, name)]
    if not chosen and option != "image_name":
        raise CaseError(
            f"{folder} has no file named with {option}={name!r}; it has {listing(paths)}."
        )
    return chosen


def _only(paths: list[Path], name: str | None, folder: Path, option: str) -> Path:
    """The one file of a case folder."""
    chosen = _choose(paths, name, folder, option)
    if len(chosen) > 1:
        kind = "images" if option == "image_name" else "masks"
        example = (words_of(stem_of(chosen[0])) or ["flair"])[-1]
        typed = f"--image-name {example}, in Python " if option == "image_name" else ""
        raise CaseError(
            f"{folder} holds {len(chosen)} {kind} ({listing(chosen)}); a case has one. Say which "
            f"by a word of its name, for example {typed}{option}={example!r}."
        )
    return chosen[0]


def _match(
    images: list[Path], masks: list[Path], folder: Path, *, lesions: bool = True
) -> dict[Path, Path]:
    """Give every mask, of lesions or of organs, to the image of its name.

    A mask belongs to the image whose stem is the mask's without its mask words, failing that to
    the only image whose stem begins with it.
    """
    labels: dict[Path, Path] = {}
    named: dict[str, list[Path]] = {}
    for path in images if masks else ():
        named.setdefault(stem_of(path), []).append(path)
    stems = sorted(named)
    for mask in masks:
        key = without_mask_words(mask)
        exact = [path for stem in {key, stem_of(mask)} for path in named.get(stem, ())]
        found = exact or [path for stem in _beginning_with(key, stems) for path in named[stem]]
        if len(found) != 1:
            raise CaseError(
                f"mask {mask} belongs to {'no' if not found else 'more than one'} image of "
                f"{folder}: {listing(found or images)}. Name it after its image, as "
                f"{stem_of(images[0])}_mask{suffix_of(mask)}, or give each case a folder."
            )
        if found[0] in labels and not lesions:
            raise CaseError(
                f"{found[0]} has two organ masks, {labels[found[0]].name} and {mask.name}; one is "
                "needed. Take the other out of the folder."
            )
        if found[0] in labels:
            raise CaseError(
                f"{found[0]} has two masks, {labels[found[0]].name} and {mask.name}; say which by "
                f"a word of its name, for example mask_name={words_of(stem_of(mask))[-1]!r}."
            )
        labels[found[0]] = mask
    if masks and lesions:
        _check_complete(images, labels, folder)
    return labels


def _beginning_with(key: str, stems: list[str]) -> list[str]:
    """Those of sorted stems that begin with a key, without a look at the others."""
    start = bisect_left(stems, key)
    return list(takewhile(lambda stem: stem.startswith(key), islice(stems, start, None)))


def _check_complete(images: list[Path], labels: dict[Path, Path], folder: Path) -> None:
    """In a folder of anomalous images with masks, every image has one."""
    missing = [path for path in images if path not in labels]
    if missing and folder.name.lower() in ANOMALOUS_FOLDERS:
        raise CaseError(
            f"{folder} has masks, but none for {listing(missing)}; add them, or remove the folder "
            "of masks to use the images without."
        )


def describe(folder: Path) -> str:
    """What a folder holds, for a message."""
    return listing(visible(folder))
