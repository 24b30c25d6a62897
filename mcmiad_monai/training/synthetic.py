"""Synthetic anomalies on held-out normal slices: labels where there are none.

They stand in for lesions when one score is to be chosen among several; nothing is trained on them.
Every anomaly is drawn from a seed, the study and the slice, so that it does not depend on the order
in which slices come.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms import GaussianSmooth, Rand2DElastic, RandGaussianNoise
from scipy import ndimage
from torch import Tensor

from mcmiad_monai.data.feature_store import FeatureWriter
from mcmiad_monai.data.features import FeatureDataset, TrainingDataError, encode_slices
from mcmiad_monai.data.studies import SliceSample, iterate_slices, patient_of
from mcmiad_monai.modality import get_modality
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.transforms import FOREGROUND_FLOOR

Kind = Literal["bright", "dark", "paste", "noise", "warp"]

#: Brighter and darker tissue, tissue of another slice, noise, and displaced tissue.
KINDS: tuple[Kind, ...] = ("bright", "dark", "paste", "noise", "warp")
#: Smallest and largest radius, as a share of the width of the foreground.
RADII = (0.03, 0.15)
#: Change of intensity, as a share of the range of the foreground's intensities.
STRENGTHS = (0.15, 0.5)
#: How much of an anomaly is in the slices before and after its own.
NEIGHBOUR = 0.5
#: Normal slices, and about as many anomalies.
LIMIT = 100
#: Anomalies of one slice, at most, where there are few slices.
DRAWS = 5


def add_anomaly(
    image: Tensor,
    *,
    kind: Kind,
    rng: np.random.RandomState,
    donor: Tensor | None = None,
    context: int = 1,
) -> tuple[Tensor, Tensor]:
    """A slice with an anomaly in its foreground, and the anomaly's mask.

    Parameters
    ----------
    image : Tensor of shape (C, S, S)
        A slice, > 0 in its foreground; a picture in colour; or, with ``context=3``, the slice
        before, itself and the slice after.
    kind : {"bright", "dark", "paste", "noise", "warp"}
    rng : RandomState
        All chance comes from it.
    donor : Tensor of shape (C, S, S), optional
        The slice that ``"paste"`` takes tissue from; the slice itself if left.
    context : {1, 3}
        With 3 the first and last channel change by half.

    Returns
    -------
    image : Tensor of shape (C, S, S)
        Unchanged outside the mask.
    mask : Tensor of shape (1, S, S), bool
    """
    inside = _foreground(image)  # (S, S)
    width = min(np.ptp(np.flatnonzero(inside.any(axis))) + 1 for axis in (0, 1))
    radius = width * float(np.exp(rng.uniform(*np.log(RADII))))
    centre, radius = _place(image, radius, rng)
    weight = _blob(inside.shape, centre, radius, rng) * inside  # (S, S)
    if kind == "paste":
        changed, there = _paste(image if donor is None else donor, centre, radius, rng)
        weight = weight * there
    elif kind == "warp":
        changed = _warp(image, radius, rng)
    else:
        changed = image + _shift(image[:, torch.from_numpy(inside)], inside.shape, kind, rng)
    share = torch.ones(len(image), 1, 1)
    if context > 1:
        share[0] = share[-1] = NEIGHBOUR
    mixing = share * torch.from_numpy(weight).float() * (image > 0)  # (C, S, S)
    mixed = image + mixing * (changed.clamp(FOREGROUND_FLOOR, 1) - image)
    return mixed, torch.from_numpy(weight > 0)[None]


def _foreground(image: Tensor) -> np.ndarray:
    """(S, S) bool; of context slices that of the middle one."""
    found: np.ndarray = (image[len(image) // 2] > 0).numpy()
    return found


def _place(
    image: Tensor, radius: float, rng: np.random.RandomState
) -> tuple[tuple[int, int], float]:
    """Centre and radius: the place with more structure of two where the anomaly fits.

    So most lie in tissue, also where much of the foreground is empty, as in OCT. The radius shrinks
    where there is no such place.
    """
    depth = ndimage.distance_transform_edt(np.pad(_foreground(image), 1))[1:-1, 1:-1]
    radius = min(radius, float(depth.max()))
    places = np.argwhere(depth >= radius)  # (n, 2)
    middle = image[len(image) // 2].numpy()
    slope = ndimage.gaussian_gradient_magnitude(middle, 1.0)
    structure = ndimage.gaussian_filter(slope, radius)[tuple(places.T)]  # (n,)
    row, column = places[max(rng.randint(len(places), size=2), key=structure.__getitem__)]
    return (int(row), int(column)), radius


def _blob(
    shape: tuple[int, ...], centre: tuple[int, int], radius: float, rng: np.random.RandomState
) -> np.ndarray:
    """An uneven, elongated disc with a soft edge: 1 inside, 0 outside."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    across = (x - centre[1]) * np.cos(turn) + (y - centre[0]) * np.sin(turn)
    along = (y - centre[0]) * np.cos(turn) - (x - centre[1]) * np.sin(turn)
    angle = np.arctan2(along, across)
    waves = [
        rng.uniform(0, 0.2) / n * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5)
    ]
    distance = radius * (1 + np.sum(waves, axis=0)) - np.hypot(across, along / flat)
    edge = max(2.0, radius * rng.uniform(0.2, 0.8))
    return np.clip(distance / edge + 0.5, 0, 1)


def _shift(
    pixels: Tensor, shape: tuple[int, ...], kind: Kind, rng: np.random.RandomState
) -> Tensor:
    """Change of intensity, (1, S, S): smooth and of one sign, or noise."""
    low, high = np.quantile(pixels.numpy(), (0.01, 0.99))
    strength = rng.uniform(*STRENGTHS) * float(high - low)
    grain = rng.uniform(0.5, 2.0) if kind == "noise" else 8.0
    noise = RandGaussianNoise(prob=1, std=1.0, sample_std=False)
    noise.set_random_state(state=rng)
    field = torch.as_tensor(GaussianSmooth(grain)(noise(torch.zeros(1, *shape))))
    field = field / field.std()
    if kind == "noise":
        return 0.5 * strength * field
    sign = 1 if kind == "bright" else -1
    return sign * strength * (1 + 0.2 * field).clamp(0.4, 1.6)


def _paste(
    donor: Tensor, centre: tuple[int, int], radius: float, rng: np.random.RandomState
) -> tuple[Tensor, np.ndarray]:
    """Turned tissue of another place, moved to `centre`, and where there is some, (S, S)."""
    turned = torch.rot90(donor, rng.randint(4), (1, 2))
    inside = _foreground(turned)
    source, _ = _place(turned, radius, rng)
    moves = (centre[0] - source[0], centre[1] - source[1])
    return torch.roll(turned, moves, (1, 2)), np.roll(inside, moves, (0, 1))


def _warp(image: Tensor, radius: float, rng: np.random.RandomState) -> Tensor:
    """The slice displaced by up to its radius."""
    deform = Rand2DElastic(
        spacing=max(4.0, radius), magnitude_range=(0.5 * radius, radius), prob=1
    ).set_random_state(state=rng)
    return torch.as_tensor(deform(image, padding_mode="border"))


def synthetic_dataset(
    cases: Sequence[Mapping[str, Any]],
    encoder: FrozenEncoder,
    *,
    modality: str,
    transform: Callable[..., Any] | None = None,
    context: int = 1,
    seed: int = 0,
    limit: int = LIMIT,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    **slices: Any,
) -> FeatureDataset:
    """Features of held-out normal slices, each as it is and with an anomaly.

    Slices are spread evenly over patients, and kinds of anomalies over slices. Where there are few
    slices, each has several anomalies, in an image of its own each.

    Parameters
    ----------
    cases : sequence of dict
        Held-out cases; their slices with lesions are left out.
    modality, transform
        See :class:`~mcmiad_monai.data.features.FeatureDataset`.
    context : {1, 3}
        Slices that an image has as channels.
    limit : int
        At most so many normal slices, which are held in memory.
    slices
        Further options of :func:`~mcmiad_monai.data.studies.iterate_slices`.

    Returns
    -------
    FeatureDataset
        Each slice, and after it those with an anomaly; the lesion masks are those of the anomalies.

    Raises
    ------
    TrainingDataError
        If there is no normal slice.
    """
    options = {"modality": modality, "transform": transform, "context": context, **slices}
    chosen = _spread(cases, limit, seed, **options)
    if not chosen:
        raise TrainingDataError(
            f"no normal slice was found in {len(cases)} held-out cases, so that no score can be "
            "chosen on them. Name the score, or give more normal studies."
        )
    size = chosen[0].lesion.shape[-1]
    writer = FeatureWriter((encoder.out_channels, encoder.grid, encoder.grid), size)
    draws = min(DRAWS, max(1, limit // len(chosen)))
    samples = (
        sample
        for number in range(len(chosen))
        for sample in _with_anomalies(chosen, number, draws, seed=seed, context=context)
    )
    block = encode_slices(samples, encoder, writer, batch_size, device)
    return FeatureDataset.from_blocks([block], encoder=encoder, case_count=len(cases))


def _with_anomalies(
    chosen: Sequence[SliceSample],
    number: int,
    draws: int,
    *,
    seed: int,
    context: int,
) -> Iterator[SliceSample]:
    """A normal slice, and `draws` times the same with an anomaly."""
    normal = chosen[number]
    kinds = kinds_of(normal.modality)
    yield normal
    for draw in range(draws):
        rng = generator(seed, normal.case, normal.index, draw)
        donor = chosen[(number + 1 + rng.randint(max(1, len(chosen) - 1))) % len(chosen)].image
        kind = kinds[(number * draws + draw) % len(kinds)]
        image, mask = add_anomaly(normal.image, kind=kind, rng=rng, donor=donor, context=context)
        yield replace(normal, image=image, lesion=mask, anomalous=True)


def kinds_of(modality: str) -> tuple[Kind, ...]:
    """Kinds of anomalies: those that lesions look like, as far as that is known."""
    return ("bright",) if get_modality(modality).bright_lesions else KINDS


def _spread(
    cases: Sequence[Mapping[str, Any]], limit: int, seed: int, **options: Any
) -> list[SliceSample]:
    """Up to `limit` normal slices, evenly over patients, their cases and the slices of those."""
    by_patient: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: str(case["case"])):
        by_patient[patient_of(case)].append(case)
    order = generator(seed, "patients").permutation(sorted(by_patient))
    share = -(-limit // max(1, len(order)))
    found: list[SliceSample] = []
    for patient in order:
        own, wanted = by_patient[patient], min(share, limit - len(found))
        for number, case in enumerate(own):
            count = -(-wanted // (len(own) - number))
            normal = list(iterate_slices([dict(case)], only_normal=True, **options))
            taken = min(count, len(normal))
            found += [normal[(2 * i + 1) * len(normal) // (2 * taken)] for i in range(taken)]
            wanted -= taken
            if wanted == 0:
                break
        if len(found) == limit:
            break
    return sorted(found, key=lambda s: (s.case, s.index))


def generator(*what: object) -> np.random.RandomState:
    """Random numbers of one thing, e.g. of a seed, a case, a slice and the number of an anomaly."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, np.uint32))
