"""BMAD's liver set made from BTCV and LiTS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from monai.transforms import HistogramNormalize, ScaleIntensityRange

from mcmiad_monai.data.cases.names import CaseError
from mcmiad_monai.research.bmad.layout import Pair, find_pairs
from mcmiad_monai.research.bmad.prepare import (
    Plane,
    Prepared,
    Slice,
    load_pair,
    new_folder,
    split_of,
    to_bytes,
    write_slices,
)

#: Share of LiTS patients in valid: 166 of its 1,659 slices.
LIVER_SHARES = {"valid": 0.1}
BTCV_LIVER, LITS_LIVER, LITS_LESION = 6, 1, 2
HU_WINDOW = (-200.0, 250.0)
#: BMAD's script lifts the new greys below this one.
LIFTED_BELOW = 150


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

    Slices with liver, min–max to 8 bit per slice, times the liver mask, histogram-equalised (see
    :func:`equalised_as_released`) and flipped upside down. Lesion is label 2 of LiTS. Patients of
    LiTS are in valid or in test; the release divides slices, so that some patients are in both.

    Parameters
    ----------
    btcv : path
        ``img<number>.nii.gz`` and ``label<number>.nii.gz``, in subfolders or not.
    lits : path
        ``volume-<number>.nii`` and ``segmentation-<number>.nii``.
    out, clean, seed
        See :func:`~mcmiad_monai.research.bmad.brain.prepare_brain`.
    shares : dict, optional
        Share of LiTS's patients in ``valid``.
    """
    root = new_folder(Path(out)) / "Liver_AD"
    healthy = find_pairs(Path(btcv), "img", "label", prefix="btcv_")
    ill = find_pairs(Path(lits), "volume", "seg", prefix="lits_")
    splits = split_of(ill, shares or LIVER_SHARES, seed, rest="test")

    def planes(pair: Pair) -> Iterator[Slice]:
        volume, labels = load_pair(pair)
        split = splits.get(pair.name, "train")
        train = split == "train"
        liver = labels == BTCV_LIVER if train else labels >= LITS_LIVER
        if not liver.any():
            raise CaseError(f"{pair.name} has no liver among its labels {np.unique(labels)}.")
        for k in np.flatnonzero(liver.any((0, 1))).tolist():
            plane = _window(volume[:, :, k]) if clean or not train else volume[:, :, k]
            equalise = equalised if clean else equalised_as_released
            shown = equalise(to_bytes(plane) * liver[:, :, k])[::-1]
            lesion = (labels[:, :, k] == LITS_LESION)[::-1]
            kind = "Ungood" if lesion.any() and not train else "good"
            yield f"{split}/{kind}", f"{pair.name}_{k}", shown, 255 * lesion

    options = {"clean": clean, "seed": seed, "shares": shares}
    both = [*healthy, *ill]
    return write_slices(
        root, both, planes, options=options, failures={}, notes=[], progress=progress
    )


def _window(plane: Plane) -> Plane:
    """Clip to the abdominal window."""
    low, high = HU_WINDOW
    clip = ScaleIntensityRange(a_min=low, a_max=high, b_min=low, b_max=high, clip=True)
    return np.asarray(clip(plane[None].astype(np.float32))[0])


def equalised(plane: Plane) -> Plane:
    """Histogram equalisation that leaves black out, and nothing else black."""
    inside = plane > 0
    if not inside.any():
        return plane
    spread = HistogramNormalize(num_bins=256, min=1, max=255, mask=inside[None])
    equal = np.asarray(spread(plane[None].astype(np.float32)))[0]
    return np.where(inside, equal, 0).astype(np.uint8)


def equalised_as_released(plane: Plane) -> Plane:
    """Histogram equalisation of BMAD's script: bin 0 is left out, and dark greys are lifted.

    A new grey is the share of the non-black pixels up to the old one, times 255 and floored. Those
    from 1 to 149 then become g / 150 · 120 + 30, floored: from 30 to 149.

    Parameters
    ----------
    plane : array of uint8
    """
    counts = np.bincount(plane.ravel(), minlength=256)
    counts[0] = 0
    new = 255 * counts.cumsum() // max(1, counts.sum())
    lifted = np.where((new > 0) & (new < LIFTED_BELOW), new * 120 // 150 + 30, new)
    return lifted[plane].astype(np.uint8)
