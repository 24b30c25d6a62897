"""Seeded phantom brain studies: the embedded default data, so that nothing needs a download.

A phantom is a FLAIR-like head built from continuous functions of world millimetres and sampled on
a grid of its own: oblique, anisotropic, and stored along its own axes. They serve demonstration,
tests and sanity checks. Figures measured on them say nothing about patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mcmiad_monai.phantom.anatomy import Subject, build_head, inside_head
from mcmiad_monai.phantom.fields import Array, SmoothField
from mcmiad_monai.phantom.lesions import HALF, LESIONS, Site

LESION_KINDS = tuple(LESIONS)
# Voxels left-right, front-back and through the slices, before axes are reordered for storage.
DEFAULT_SHAPE = (96, 112, 24)
# Orders in which scanners and converters store axes; each names where an axis grows to.
ORIENTATIONS = ("LPS", "RAS", "LAS", "PIR", "ASL", "SRP", "AIL", "RPI")
# Range of the field of view in mm across, along and through the slices.
FIELD_OF_VIEW = ((170.0, 184.0), (208.0, 226.0), (118.0, 130.0))
# Range of the angle between the slices and the world's axes in degrees.
OBLIQUE_DEGREES = (5.0, 25.0)


@dataclass(frozen=True)
class Phantom:
    """One phantom study; arrays are (I, J, K).

    Attributes
    ----------
    image : array of int16
        Signal in arbitrary units that differ between studies, as they do between scanners.
    mask : array of uint8
        1 where the lesion changes the image, 0 elsewhere.
    affine : (4, 4) array of float64
        From voxel indices to world millimetres (RAS).
    """

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_phantom(
    seed: int,
    *,
    lesion: str | None = None,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    orientation: str | None = None,
) -> Phantom:
    """Make one study; the same seed gives the same study.

    With and without a lesion, a seed gives the same person, grid and noise.

    Parameters
    ----------
    seed : int
        Not negative.
    lesion : str, optional
        One of ``LESION_KINDS``; none makes a healthy study.
    shape : tuple of int
        Voxels left-right, front-back and through the slices; spacing follows from the field of
        view. The stored array has these numbers in the order of its axes.
    orientation : str, optional
        Axis codes in which to store the study, such as ``"PIR"``; by default the seed chooses.

    Raises
    ------
    ValueError
        If the kind of lesion is not known or the shape is too small to hold one.
    """
    if lesion is not None and lesion not in LESIONS:
        raise ValueError(f"lesion {lesion!r} is not known; choose one of {sorted(LESIONS)}.")
    # independent random streams: a lesion leaves anatomy, grid and noise as they were
    streams = [np.random.default_rng([seed, purpose]) for purpose in range(4)]
    subject_rng, grid_rng, lesion_rng, noise_rng = streams
    affine, head_to_world = _draw_geometry(grid_rng, shape)
    subject = Subject.draw(subject_rng)
    indices = np.indices(shape, dtype=np.float32).reshape(3, -1)
    world = affine[:3, :3].astype(np.float32) @ indices + affine[:3, 3:].astype(np.float32)
    offset = world - head_to_world[:3, 3:].astype(np.float32)
    points = head_to_world[:3, :3].T.astype(np.float32) @ offset  # (3, N)
    inside = inside_head(points, subject)
    points = points[:, inside]
    head = build_head(points, subject)
    signal, extent = np.zeros((2, inside.size), np.float32)
    signal[inside] = head.signal
    if lesion is not None:
        signal[inside], extent[inside] = LESIONS[lesion](Site(head, points, subject, lesion_rng))
    image = _acquire(signal, world, noise_rng).reshape(shape)
    mask = (extent > HALF).astype(np.uint8).reshape(shape)
    codes = orientation or ORIENTATIONS[int(grid_rng.integers(len(ORIENTATIONS)))]
    return stored(image, mask, affine, codes)


def _draw_geometry(
    rng: np.random.Generator, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affine of the grid in RAS order, and the pose of the head in the world.

    The head lies tilted in the scanner and the slices are planned along it, but not perfectly.
    """
    axis = rng.normal(0.0, 1.0, 3) * (1.0, 0.35, 0.35)  # mostly nodding
    tilt = np.deg2rad(rng.uniform(*OBLIQUE_DEGREES)) * axis / np.linalg.norm(axis)
    planning = np.deg2rad(rng.normal(0.0, 2.0, 3))
    grid_turn = Rotation.from_rotvec(tilt).as_matrix()
    head = np.eye(4)
    head[:3, :3] = grid_turn @ Rotation.from_rotvec(planning).as_matrix()
    head[:3, 3] = rng.normal(0.0, 12.0, 3)
    spacing = np.asarray([rng.uniform(*limits) for limits in FIELD_OF_VIEW]) / shape
    middle = head[:3, 3] + grid_turn @ (rng.normal(0.0, 1.5), rng.normal(0.0, 1.5), 7.0)
    affine = np.eye(4)
    affine[:3, :3] = grid_turn * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine, head


def _acquire(signal: Array, world: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """Coil shading, Rician noise and a scanner's arbitrary scale: (N,) signal to int16."""
    shading = SmoothField(rng, wavelength=240.0, order=1)
    noise = rng.uniform(0.012, 0.026)
    scale = rng.uniform(300.0, 1400.0)
    real = signal * np.exp(np.float32(0.09) * shading(world))
    real += noise * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(signal.shape, dtype=np.float32)
    magnitude = np.sqrt(real**2 + imaginary**2)  # (N,)
    return np.rint(scale * magnitude).astype(np.int16)


def stored(
    image: NDArray[Any], mask: NDArray[np.uint8], affine: NDArray[np.float64], codes: str
) -> Phantom:
    """Reorder and flip the axes of an RAS grid to ``codes``; no voxel moves in the world."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    study, label = (nib.Nifti1Image(a, affine).as_reoriented(turn) for a in (image, mask))
    return Phantom(np.asarray(study.dataobj), np.asarray(label.dataobj), study.affine)
