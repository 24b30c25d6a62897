"""Which studies the head is trained on, and which are held out to validate and calibrate."""

from __future__ import annotations

from pathlib import Path

from mcmiad_monai.data.volumes import find_cases, split_cases
from mcmiad_monai.data.volumes_files import Case, MissingSplitError


def training_splits(
    source: str | Path, *, fraction: float = 0.2, seed: int = 0
) -> tuple[list[Case], list[Case]]:
    """Training and validation cases of a source.

    The source's own validation split is used where it has one; otherwise a share of its training
    cases is held out, whole cases at a time.

    Parameters
    ----------
    source : path
        Folder or datalist; see :func:`~mcmiad_monai.data.volumes.find_cases`.
    fraction : float
        Share held out where the source has no validation split.
    seed : int
        Seed of the choice.
    """
    train = find_cases(source, "train")
    try:
        return train, find_cases(source, "val")
    except MissingSplitError:
        return split_cases(train, fraction, seed=seed)
