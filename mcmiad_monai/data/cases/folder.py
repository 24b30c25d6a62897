"""Cases in a folder: flat, one folder a case, DICOM series, or good and Ungood side by side."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from mcmiad_monai.data.cases.names import (
    MASK_WORDS,
    PICTURE_SUFFIXES,
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
    suffix_of,
    visible,
    without_mask_words,
    words_of,
)

# BMAD's names for normal and abnormal images; a label of the whole image, not of its pixels.
NORMAL_FOLDERS = frozenset({"good", "normal", "healthy"})
ANOMALOUS_FOLDERS = frozenset({"ungood", "abnormal", "anomalous", "bad"})
# Folders that only hold images and say nothing about a case.
IMAGE_FOLDERS = frozenset({"img", "imgs", "image", "images"})
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
    """Cases of one folder, deeper folders included; an empty list if there are none."""
    classes = class_folders(folder)
    if classes:
        _check_classes(folder, classes)
        return [
            {**case, "anomalous": anomalous}
            for path, anomalous in classes
            for case in find_in_folder(path, wanted)
        ]
    if is_dicom_series(folder):
        return [_series(folder, wanted)]
    cases = _files(folder, wanted)
    for path in _case_folders(folder):
        cases += _case_folder(path, wanted)
    return cases


def class_folders(folder: Path) -> list[tuple[Path, bool]]:
    """Folders named good or Ungood (or alike), each with whether its images are anomalous."""
    names = [(path, path.name.lower()) for path in subfolders(folder)]
    known = NORMAL_FOLDERS | ANOMALOUS_FOLDERS
    return [(path, name in ANOMALOUS_FOLDERS) for path, name in names if name in known]


def _check_classes(folder: Path, classes: list[tuple[Path, bool]]) -> None:
    """No images lie beside the folders good and Ungood, where they would be passed over."""
    known = {path for path, _ in classes}
    strays = [path for path in _case_folders(folder) if path not in known and any(path.iterdir())]
    strays += image_files(folder)
    if strays:
        raise CaseError(
            f"{folder} has {listing(sorted(known))} and beside them {listing(strays)}, of which it "
            f"is not clear whether it is normal. Normal images go into one of "
            f"{sorted(NORMAL_FOLDERS)}, others into one of {sorted(ANOMALOUS_FOLDERS)}."
        )


def _case_folders(folder: Path) -> list[Path]:
    """Subfolders that may hold cases of their own."""
    special = IMAGE_FOLDERS | MASK_FOLDERS
    return [path for path in subfolders(folder) if path.name.lower() not in special]


def _files(folder: Path, wanted: Wanted) -> list[Case]:
    """Every image file of a folder, or of the folder of images in it, as a case of its own."""
    images, masks = _images_and_masks(folder)
    organs = [path for path in masks if is_organ_mask(path)]
    masks = [path for path in masks if path not in organs]
    images = _choose(images, wanted.image_name, folder, "image_name")
    masks = _choose(masks, wanted.mask_name, folder, "mask_name")
    if not images:
        return []
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
    return images, masks


def _case_folder(folder: Path, wanted: Wanted) -> list[Case]:
    """A folder that is one case, or that holds further folders or pictures."""
    images, masks = _images_and_masks(folder)
    if not _is_one_case(folder, images):
        return find_in_folder(folder, wanted)
    image = _only(images, wanted.image_name, folder, "image_name")
    return [_case(folder.name, image, *_lesion_and_organ(masks, wanted, folder))]


def is_one_case(folder: Path) -> bool:
    """Whether a folder in a folder of cases is one case, so that folders in it are not read."""
    return _is_one_case(folder, _images_and_masks(folder)[0])


def _is_one_case(folder: Path, images: list[Path]) -> bool:
    pictures = all(suffix_of(path) in PICTURE_SUFFIXES for path in images)
    return bool(images) and not (pictures and len(images) > 1) and not is_dicom_series(folder)


def _series(folder: Path, wanted: Wanted) -> Case:
    """A DICOM series, with the mask file that may lie beside its slices."""
    masks = [path for path in image_files(folder) if is_mask(path)]
    return _case(folder.name, folder, *_lesion_and_organ(masks, wanted, folder))


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
    """The files with the wanted name, all of them if none is wanted."""
    if name is None or not paths:
        return paths
    chosen = [path for path in paths if has_name(path, name)]
    if not chosen:
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
        raise CaseError(
            f"{folder} holds {len(chosen)} {kind} ({listing(chosen)}); a case has one. Say which "
            f"by a word of its name, for example {option}={example!r}."
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
