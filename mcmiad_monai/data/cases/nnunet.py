"""nnU-Net's layout: ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz``, ``dataset.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mcmiad_monai.data.cases.names import (
    Case,
    CaseError,
    MissingSplitError,
    has_name,
    image_files,
    stem_of,
)
from mcmiad_monai.files.formats import suffix_of

#: Folder of the images of each split; that of their masks has ``labels`` instead of ``images``.
IMAGES = {"train": "imagesTr", "test": "imagesTs"}
#: A file of one channel of a case.
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def nnunet_folders(folder: Path) -> dict[str, Path]:
    """Folders of images that a folder has, or is itself, by split; none in another layout."""
    if folder.name in IMAGES.values():
        own = {split: folder for split, name in IMAGES.items() if name == folder.name}
    else:
        own = {split: folder / name for split, name in IMAGES.items()}
    return {split: path for split, path in own.items() if path.is_dir() and image_files(path)}


def masks_of(images: Path) -> Path:
    """Folder of the masks of a folder of images."""
    return images.with_name(images.name.replace("images", "labels"))


def find_in_nnunet(folders: dict[str, Path], split: str, image_name: str | None) -> list[Case]:
    """Cases of one split, or of all; one folder alone is all of them.

    Parameters
    ----------
    folders : dict
        See `nnunet_folders`.
    image_name : str, optional
        Name of a channel in ``dataset.json``, or its number: ``"FLAIR"``, ``"0001"``.

    Raises
    ------
    CaseError
        If there are several channels and none is chosen, or there is no such split.
    """
    if split == "val":
        raise MissingSplitError(
            f"{next(iter(folders.values())).parent} has no validation split; nnU-Net draws it from "
            "imagesTr."
        )
    chosen = [folders[split]] if split in folders else list(folders.values())
    return [case for folder in chosen for case in _cases(folder, image_name)]


def _cases(folder: Path, image_name: str | None) -> list[Case]:
    channels: dict[str, dict[str, Path]] = {}
    for path in image_files(folder):
        found = CHANNEL.fullmatch(stem_of(path))
        case, channel = found.groups() if found else (stem_of(path), "0000")
        channels.setdefault(channel, {})[case] = path
    if "0000" not in channels:  # numbers of cases, not of channels
        channels = {"0000": {stem_of(path): path for path in image_files(folder)}}
    names = _channel_names(folder.parent)
    chosen = sorted(channels) if image_name is None else [
        channel for channel in sorted(channels)
        if has_name(Path(f"{channel}_{names.get(channel, '')}"), image_name)
    ]  # fmt: skip
    if len(chosen) > 1:
        known = ", ".join(f"{channel} {names.get(channel, '')}".strip() for channel in channels)
        raise CaseError(
            f"{folder} holds {len(channels)} channels ({known}); a model looks at one. Say which, "
            f"for example --image-name {names.get(chosen[0], chosen[0])}."
        )
    return [
        {
            "case": case,
            "image": str(path),
            "label": _mask(folder, case, suffix_of(path)),
            "anomalous": None,
        }
        for channel in chosen
        for case, path in sorted(channels[channel].items())
    ]


def _mask(folder: Path, case: str, suffix: str) -> str | None:
    path = masks_of(folder) / f"{case}{suffix}"
    return str(path) if path.is_file() else None


def _channel_names(root: Path) -> dict[str, str]:
    """Names of channels by number, as ``dataset.json`` has them: ``{"0000": "FLAIR"}``."""
    try:
        content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
        named = content.get("channel_names") or content.get("modality") or {}
        return {f"{int(number):04d}": str(name) for number, name in named.items()}
    except (OSError, ValueError, AttributeError):
        return {}
