"""Which normal slice a place resembles most, from the memory of normal tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.memory import NormalMemory
from mcmiad_monai.transforms import slice_batch

#: From a voxel of the study's own grid and the affine of that grid to the nearest normal.
Recall = Callable[[tuple[int, int, int], NDArray[np.float64]], "NearestNormal"]


class NoMemoryError(ValueError):
    """The model has no memory of normal tokens."""


@dataclass(frozen=True, kw_only=True)
class NearestNormal:
    """The place in a normal training slice that a place of a study resembles most.

    Attributes
    ----------
    at : (int, int, int)
        Voxel of the study, in its own array.
    study : int
        Number of the normal study in the memory. The training's ``eval/memory_studies.csv`` has the
        name.
    slice : int
        Slice of that study along the canonical slice axis.
    position : (float, float)
        Column and row in that slice as the network saw it, as shares of its width and height: the
        middle of a cell.
    memory : {"cosine", "l2"}
        Distance of the memory.
    distance : float
        To that place, in the memory's own unit; 0 is the same.
    share_of_normals : float or None
        Share of foreground cells of held-out normal slices with at least this distance; None if the
        model does not know.
    """

    at: tuple[int, int, int]
    study: int
    slice: int
    position: tuple[float, float]
    memory: str
    distance: float
    share_of_normals: float | None


def recall_from(
    detector: MCMIADDetector, image: MetaTensor, *, axis: int, lock: threading.Lock
) -> Recall:
    """Search the memory of a detector for places of a study.

    Parameters
    ----------
    image : MetaTensor of shape (1 or 3, X, Y, Z)
        Prepared for the detector: canonical, normalised, cropped.
    axis : int
        Slice axis of `image`.
    lock : Lock
        Held while the features of the slice are computed.

    Returns
    -------
    callable
        It raises `NoMemoryError` if the detector has no memory.
    """

    def recall(at: tuple[int, int, int], affine: NDArray[np.float64]) -> NearestNormal:
        name, memory = memory_of_score(detector)
        voxel = same_place(at, affine, image.affine.numpy())
        grid = detector.encoder.grid
        row, column = cell_of(voxel, image.shape[1:], axis=axis, grid=grid)
        with lock, torch.inference_mode():
            images = slice_batch(image, [voxel[axis]], axis=axis, context=detector.context)
            features = detector.features(images.to(detector.heat_scale.device))
            found = memory.nearest(features)
        study, index, cell = memory.origin[found.token[0, row, column]].tolist()
        distance = float(found.distance[0, 0, row, column])
        quantiles = detector.trained_with.get("memory", {}).get("held_out_distances", {})
        return NearestNormal(
            at=at,
            study=study,
            slice=index,
            position=((cell % grid + 0.5) / grid, (cell // grid + 0.5) / grid),
            memory=name,
            distance=distance,
            share_of_normals=share_above(distance, quantiles[name]) if name in quantiles else None,
        )

    return recall


def memory_of_score(detector: MCMIADDetector) -> tuple[str, NormalMemory]:
    """Name and memory that the score is made of; if it is made of none, or of two, the first.

    Raises
    ------
    NoMemoryError
        If the detector has no memory.
    """
    used = [name for name in detector.memories if f"memory-{name}" in detector.score.sources]
    names = [*used, *detector.memories]
    if not names:
        raise NoMemoryError(
            "the model has no memory of normal images: it was trained without one, or its score "
            "does not use it. Train one with mcmiad train --score memory-cosine."
        )
    return names[0], cast(NormalMemory, detector.memories[names[0]])


def same_place(
    voxel: Sequence[int], affine: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[int, int, int]:
    """Voxel of another grid at the same place; the grids differ in axes, flips and first voxel."""
    found = np.linalg.solve(other, affine @ [*voxel, 1.0])[:3]
    x, y, z = (int(n) for n in np.rint(found))
    return x, y, z


def cell_of(voxel: Sequence[int], shape: Sequence[int], *, axis: int, grid: int) -> tuple[int, int]:
    """Row and column of the network's cell that has a voxel of a volume (X, Y, Z)."""
    column, row = (int((voxel[a] + 0.5) / shape[a] * grid) for a in range(3) if a != axis)
    return row, column


def share_above(distance: float, quantiles: Sequence[float]) -> float:
    """Share of a distribution, given by equally spaced quantiles, at or above a distance."""
    if distance > quantiles[-1]:
        return 0.0
    # ties at the distance count: the first of equal quantiles
    below = int(np.searchsorted(quantiles, distance, side="left"))
    if below == 0:
        return 1.0
    low, high = quantiles[below - 1], quantiles[below]
    rank = below - 1 + (distance - low) / (high - low)
    return float(1 - rank / (len(quantiles) - 1))
