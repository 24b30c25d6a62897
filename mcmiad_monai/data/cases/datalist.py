"""Cases of a MONAI datalist or a Medical Segmentation Decathlon ``dataset.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcmiad_monai.data.cases.names import Case, CaseError, MissingSplitError, listing, stem_of
from mcmiad_monai.files.formats import suffix_of

# Names under which files list a split.
SPLIT_KEYS = {
    "train": ("training", "train"),
    "val": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
# File names that are looked for in a folder.
DATALIST_NAMES = ("datalist.json", "dataset.json")
# Stems that say nothing about a case, whose folder names it instead.
GENERIC_STEMS = frozenset({"image", "img", "flair", "volume", "scan"})


def datalist_in(folder: Path) -> Path | None:
    """The datalist of a folder, if it has one that lists cases.

    The list of nnU-Net's first version is none: it leaves the channels out of the files' names.
    """
    for name in DATALIST_NAMES:
        path = folder / name
        if path.is_file():
            content = _load(path)
            listed = _listed_splits(content)
            if listed and not any(_lacks_channels(path, content[key]) for key in listed.values()):
                return path
    return None


def _lacks_channels(path: Path, entries: list[Any]) -> bool:
    """Whether ``case.nii.gz`` is listed first, and there is ``case_0000.nii.gz`` instead."""
    first = entries[0].get("image") if entries and isinstance(entries[0], dict) else entries[:1]
    name = first[0] if isinstance(first, list) and first else first
    if not isinstance(name, str):
        return False
    image = _resolve(path, name)
    channel = image.with_name(f"{stem_of(image)}_0000{suffix_of(image)}")
    return channel.exists() and not image.exists()


def find_in_datalist(path: Path, split: str) -> list[Case]:
    """Cases of one split of a datalist, or of all, in the order of the file.

    Raises
    ------
    CaseError
        If the split is not listed, an entry cannot be understood, or files do not exist.
    """
    content = _load(path)
    listed = _listed_splits(content)
    if not listed or (split != "all" and split not in listed):
        keys = sorted(content) if isinstance(content, dict) else type(content).__name__
        wanted = "any of " + ", ".join(k for keys in SPLIT_KEYS.values() for k in keys)
        if split != "all":
            wanted = " or ".join(repr(key) for key in SPLIT_KEYS[split])
        raise MissingSplitError(f"{path} has no list under {wanted}; its keys are {keys}.")
    names = list(listed) if split == "all" else [split]
    entries = [entry for name in names for entry in content[listed[name]]]
    cases = [entry_of(path, entry) for entry in entries]
    _check_files(path, cases)
    return cases


def _load(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CaseError(
            f"{path} is not a readable JSON datalist ({error}); a list of studies is needed, or "
            "one for each split. Write it again."
        ) from error


def _listed_splits(content: Any) -> dict[str, str]:
    """Splits that a datalist has, each with the key under which it is listed."""
    if not isinstance(content, dict):
        return {}
    return {
        split: key
        for split, keys in SPLIT_KEYS.items()
        for key in keys
        if isinstance(content.get(key), list)
    }


def entry_of(path: Path, entry: Any) -> Case:
    """Turn one entry of a list, a dictionary or a plain path, into a case."""
    fields = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict) or not isinstance(fields.get("image"), str):
        raise CaseError(
            f"{path} has the entry {entry!r}; an entry is a path, or a dictionary with one path "
            "under 'image' and, if there is a lesion mask, one under 'label'."
        )
    image = _resolve(path, fields["image"])
    label, anomalous = fields.get("label"), fields.get("anomalous")
    if isinstance(label, (bool, int)):  # a label of the whole image, as in classification lists
        label, anomalous = None, bool(label)
    if label is not None and not isinstance(label, str):
        raise CaseError(f"{path} has the label {label!r}; a label is a path, 0 or 1.")
    stem = stem_of(image)
    generic = stem.lower() in GENERIC_STEMS
    return {
        "case": str(fields.get("case") or (image.parent.name if generic else stem)),
        **{key: str(fields[key]) for key in ("patient", "modality") if fields.get(key) is not None},
        "image": str(image),
        "label": None if label is None else str(_resolve(path, label)),
        **({} if fields.get("organ") is None else {"organ": str(_resolve(path, fields["organ"]))}),
        "anomalous": None if anomalous is None else bool(anomalous),
    }


def _resolve(path: Path, name: str) -> Path:
    """A path of a datalist, relative to the folder of the datalist."""
    return path.parent / Path(name).expanduser()


def files_of(case: Case) -> list[Path]:
    """Image, lesion mask and organ mask of a case."""
    return [Path(case[key]) for key in ("image", "label", "organ") if case.get(key)]


def _check_files(path: Path, cases: list[Case]) -> None:
    """Every listed file exists."""
    missing = [file for case in cases for file in files_of(case) if not file.exists()]
    if missing:
        raise CaseError(
            f"{path} lists {len(missing)} files that do not exist ({listing(missing)}), the first "
            f"at {missing[0]}; paths in a datalist are relative to its folder."
        )
