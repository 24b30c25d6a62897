"""Augmented copies of training slices: mirrored where anatomy allows, turned, shifted, gamma."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandFlipd

from mcmiad_monai.data.studies import SliceSample
from mcmiad_monai.modality import get_modality

#: Degrees to either side.
MAX_ROTATION = 10.0
#: Share of the width to either side, along rows and columns.
MAX_SHIFT = 0.05
#: Contrast exponents; 1 changes nothing.
GAMMA = (0.7, 1.5)

#: What decides about a copy beside its seed; a part of the key of a feature cache.
RECIPE: dict[str, Any] = {"rotation": MAX_ROTATION, "shift": MAX_SHIFT, "gamma": GAMMA}


def augmented_copies(
    samples: Iterable[SliceSample], copies: int, seed: int = 0
) -> Iterator[SliceSample]:
    """Copies of every slice, in order; the slices themselves are left out.

    A copy depends on the seed, the study, the slice and its own number alone, so that every process
    and every later run makes the same. All channels of a slice are transformed alike, and lesion
    and foreground move with it.

    Parameters
    ----------
    samples : iterable of SliceSample
    copies : int
        Of each slice.
    seed : int
    """
    for sample in samples:
        for number in range(1, copies + 1):
            yield _augmented(sample, _seed_of(seed, sample.case, sample.index, number))


@cache
def augmentation(size: int, *, mirror: bool) -> Compose:
    """Random transforms of a slice of ``size`` pixels a side, with its masks.

    Parameters
    ----------
    mirror : bool
        Half of the slices are flipped left to right.
    """
    keys = ["image", "foreground", "lesion"]
    affine = RandAffined(
        keys,
        prob=1.0,
        rotate_range=MAX_ROTATION * torch.pi / 180,
        translate_range=[MAX_SHIFT * size] * 2,
        mode=["bilinear", "nearest", "nearest"],
        padding_mode="zeros",
    )
    return Compose(
        [
            RandFlipd(keys, prob=0.5 if mirror else 0.0, spatial_axis=1),  # columns
            affine,
            RandAdjustContrastd("image", prob=1.0, gamma=GAMMA),
        ]
    )


def _augmented(sample: SliceSample, seed: int) -> SliceSample:
    image = sample.image
    mirror = get_modality(sample.modality).mirrors
    transform = augmentation(image.shape[-1], mirror=mirror).set_random_state(seed)
    masks = {"foreground": (image > 0).float(), "lesion": sample.lesion.float()}
    moved = transform({"image": image, **masks})
    # interpolation widens the foreground by a pixel, which its own mask takes back
    inside, lesion = (moved[key].as_tensor() > 0.5 for key in masks)
    return replace(sample, image=moved["image"].as_tensor() * inside, lesion=lesion)


def _seed_of(*origin: Any) -> int:
    digest = hashlib.sha256("/".join(map(str, origin)).encode()).digest()
    return int.from_bytes(digest[:4], "little")
