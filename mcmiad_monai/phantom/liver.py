"""Seeded phantom CT studies of the upper abdomen, with the liver segmented.

Coordinates of the body are in mm: x to the right, y to the front, z to the top, with the origin in
the middle of the trunk at the height of the liver. Values are Hounsfield units of a portal venous
phase. Figures measured on phantoms say nothing about patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mcmiad_monai.phantom.brain import (
    GRID,
    LESION,
    NOISE,
    ORIENTATIONS,
    SUBJECT,
    draw_geometry,
    store,
    stream,
    to_head,
    voxel_positions,
)
from mcmiad_monai.phantom.fields import Array, SmoothField, capsule, ellipsoid, paint, step
from mcmiad_monai.phantom.lesions import HALF, Blob

# Voxels left-right, front-back and through the slices, before axes are reordered for storage.
DEFAULT_SHAPE = (96, 80, 20)
# Range of the field of view in mm across, along and through the slices.
FIELD_OF_VIEW = ((362.0, 395.0), (290.0, 315.0), (172.0, 192.0))
# Half-axes of an average trunk in mm; sides and back are flatter than those of an ellipse.
TRUNK_RADII = (158.0, 106.0)
TRUNK_EXPONENT = 2.5
MUSCLE_THICKNESS = 11.0
# Distances from rib to rib and from disc to disc along the body in mm.
RIB_PITCH = 31.0
VERTEBRA_PITCH = 33.0
# Hounsfield units that hardly differ between people.
AIR, LUNG, FAT, FLUID, MUSCLE, SPONGY_BONE, BONE = -1000, -850, -102, 8, 58, 190, 480
# Twelve-bit scanners store nothing below -1024 HU.
LOWEST_HU = -1024
# Edges are as soft as a thick slice makes them, in mm.
EDGE = 2.5


@dataclass(frozen=True)
class LiverPhantom:
    """One phantom study of the abdomen.

    Attributes
    ----------
    image : (I, J, K) int16 array
        Hounsfield units.
    mask : (I, J, K) uint8 array
        1 where the lesion changes the image, 0 elsewhere; inside ``organ``.
    organ : (I, J, K) uint8 array
        1 in the liver with its vessels and lesions, 0 elsewhere.
    affine : (4, 4) float64 array
        From voxel indices to world millimetres (RAS).
    lesion : str or None
        Kind of lesion, one of ``LIVER_LESION_KINDS``.
    """

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    organ: NDArray[np.uint8]
    affine: NDArray[np.float64]
    lesion: str | None


@dataclass(frozen=True)
class Patient:
    """What differs between normal people: lengths in mm, values in Hounsfield units."""

    size: Array
    fat: float
    liver: float
    vessels: float
    spleen: float
    kidney: float
    aorta: float
    left_lobe: float
    gas_level: float
    slow: SmoothField
    bowel: SmoothField

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Patient:
        """Draw a person at random."""
        liver = float(rng.normal(104.0, 4.0))
        size = rng.normal(1.0, 0.025) * rng.normal(1.0, (0.02, 0.02, 0.03))
        return cls(
            size=size.astype(np.float32)[:, None],  # (3, 1)
            fat=float(rng.uniform(11.0, 21.0)),
            liver=liver,
            vessels=float(liver + rng.uniform(42.0, 60.0)),
            spleen=float(liver + rng.uniform(6.0, 18.0)),
            kidney=float(rng.uniform(160.0, 185.0)),
            aorta=float(rng.uniform(145.0, 170.0)),
            left_lobe=float(rng.uniform(0.85, 1.15)),
            gas_level=float(rng.uniform(18.0, 38.0)),
            slow=SmoothField(rng, wavelength=80.0, order=1),
            bowel=SmoothField(rng, wavelength=62.0, order=1),
        )


@dataclass(frozen=True)
class Abdomen:
    """An abdomen seen at N points.

    Attributes
    ----------
    hounsfield : (N,) array
        Hounsfield units without noise.
    liver : (N,) array
        Share of liver, 0 to 1; above ``HALF`` is the organ's mask.
    depth : (N,) array
        Distance from the liver's surface in mm, positive inside.
    """

    hounsfield: Array
    liver: Array
    depth: Array


def make_liver_phantom(
    seed: int,
    *,
    lesion: str | None = None,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    orientation: str | None = None,
) -> LiverPhantom:
    """Make one study; the same seed gives the same study.

    The same seed with and without a lesion gives the same person on the same grid with the same
    noise, so that the two differ by the lesion alone.

    Parameters
    ----------
    seed : int
        Not negative.
    lesion : str, optional
        One of ``LIVER_LESION_KINDS``; none makes a healthy study.
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
    if lesion is not None and lesion not in LIVER_LESIONS:
        raise ValueError(f"lesion {lesion!r} is not known; choose one of {sorted(LIVER_LESIONS)}.")
    grid_rng = stream(seed, GRID)
    affine, body_to_world = _plan_scan(grid_rng, shape)
    patient = Patient.draw(stream(seed, SUBJECT))
    points = to_head(voxel_positions(affine, shape), body_to_world)  # (3, N)
    points /= patient.size
    trunk = _trunk(points)
    inside = trunk > -EDGE
    body = build_abdomen(points[:, inside], trunk[inside], patient)
    hounsfield = np.full(inside.shape, AIR, np.float32)
    extent, organ = np.zeros_like(hounsfield), np.zeros_like(hounsfield)
    hounsfield[inside], organ[inside] = body.hounsfield, body.liver
    if lesion is not None:
        paint_lesion, rng = LIVER_LESIONS[lesion], stream(seed, LESION)
        hounsfield[inside], extent[inside] = paint_lesion(body, points[:, inside], patient, rng)
    image = _acquire(hounsfield.reshape(shape), stream(seed, NOISE))
    mask, liver = ((share > HALF).astype(np.uint8).reshape(shape) for share in (extent, organ))
    codes = orientation or ORIENTATIONS[int(grid_rng.integers(len(ORIENTATIONS)))]
    ill, whole = (store(image, labels, affine, codes, lesion) for labels in (mask, liver))
    return LiverPhantom(ill.image, ill.mask, whole.mask, ill.affine, lesion)


def build_abdomen(points: Array, trunk: Array, patient: Patient) -> Abdomen:
    """Evaluate the abdomen of ``patient`` at ``points`` (3, N), ``trunk`` mm below the skin."""
    slow = patient.slow(points)
    cavity = trunk - np.float32(MUSCLE_THICKNESS) - patient.fat * (1.0 + 0.18 * slow)
    signal = _paint_wall(points, trunk, cavity)
    below = _diaphragm(points) - points[2]
    signal = paint(signal, LUNG, step(cavity - 1.0, EDGE) * step(-below, EDGE))
    heart = np.minimum(ellipsoid(points, (-25.0, 34.0, 84.0), (62.0, 48.0, 46.0)), cavity - 4.0)
    signal = paint(signal, patient.aorta - 20.0, step(heart, EDGE))
    signal = _paint_spine(signal, points)
    belly = np.minimum(cavity, below)
    signal = _paint_bowel(signal, points, belly, patient)
    signal = _paint_stomach(signal, points, belly, patient)
    spleen = ellipsoid(points, (-98.0, -36.0, 14.0), (33.0, 48.0, 50.0)) + 3.0 * slow
    signal = paint(signal, patient.spleen, step(np.minimum(spleen, belly - 3.0), EDGE))
    kidneys = _kidneys(points)
    signal = _paint_kidneys(signal, points, kidneys, patient)
    signal = _paint_great_vessels(signal, points, patient)
    gallbladder = ellipsoid(points, (46.0, 46.0, -40.0), (14.0, 18.0, 27.0))
    liver = np.minimum(_liver(points, slow, patient), belly - 3.0)
    liver = np.minimum(liver, np.minimum(-kidneys - 4.0, -gallbladder - 1.0))
    share = step(liver, EDGE)
    signal = paint(signal, patient.liver + 2.0 * slow, share)
    signal = _paint_liver_vessels(signal, points, liver, patient)
    signal = paint(signal, FLUID, step(gallbladder, EDGE) * step(belly - 3.0, EDGE))
    return Abdomen(signal, share, liver)


def _plan_scan(
    rng: np.random.Generator, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affine of the grid in RAS order and pose of the body: those of a head, with a wider view."""
    affine, pose = draw_geometry(rng, shape)
    spacing = np.asarray([rng.uniform(*limits) for limits in FIELD_OF_VIEW]) / shape
    affine[:3, :3] *= spacing / nib.affines.voxel_sizes(affine)
    affine[:3, 3] = pose[:3, 3] - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine, pose


def _acquire(hounsfield: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """Quantum noise of the detector: (I, J, K) to int16."""
    noise = rng.uniform(8.0, 13.0) * rng.standard_normal(hounsfield.shape, dtype=np.float32)
    return np.rint(np.maximum(hounsfield + noise, LOWEST_HU)).astype(np.int16)


def _trunk(points: Array) -> Array:
    """Distance below the skin in mm along the ray from the body's axis, positive inside."""
    across, along = np.abs(points[0]) / TRUNK_RADII[0], np.abs(points[1]) / TRUNK_RADII[1]
    power = across**TRUNK_EXPONENT + along**TRUNK_EXPONENT
    level = np.maximum(power, 1e-6) ** np.float32(1.0 / TRUNK_EXPONENT)
    return np.asarray(np.hypot(points[0], points[1]) * (1.0 / level - 1.0), np.float32)


def _diaphragm(points: Array) -> Array:
    """Height of the diaphragm in mm: two domes, the right one over the liver higher."""
    right = 76.0 - ((points[0] - 66.0) ** 2 + (points[1] - 8.0) ** 2) / 125.0
    left = 62.0 - ((points[0] + 66.0) ** 2 + (points[1] - 4.0) ** 2) / 125.0
    middle = 48.0 - (points[0] ** 2 + (points[1] - 25.0) ** 2) / 220.0  # below the heart
    return np.asarray(np.maximum(np.maximum(right, left), middle))


def _paint_wall(points: Array, trunk: Array, cavity: Array) -> Array:
    """Subcutaneous fat, the muscles of the wall with ribs, and the fat between the organs."""
    signal = paint(np.full_like(trunk, AIR), FAT, step(trunk, EDGE))
    signal = paint(signal, MUSCLE, step(cavity + MUSCLE_THICKNESS, EDGE))
    signal = paint(signal, FAT, step(cavity, EDGE))
    # Ribs fall from the back to the front and end in the arch below the breastbone.
    height = points[2] + 0.75 * points[1]
    to_rib = np.abs((height / RIB_PITCH) % 1.0 - 0.5) * RIB_PITCH
    ribs = 5.0 - np.hypot(0.8 * to_rib, cavity + MUSCLE_THICKNESS / 2)
    arch = step(points[2] + 25.0 - 0.5 * points[1], 8.0) * step(np.abs(points[0]) - 30.0, 6.0)
    return paint(signal, 0.7 * BONE, step(ribs, EDGE) * arch)


def _paint_spine(signal: Array, points: Array) -> Array:
    """Muscles of the back, vertebrae with discs, the canal, and spinous processes."""
    half = points * np.asarray([[1.0], [1.0], [0.0]], np.float32)  # all of it runs along the body
    half[0] = np.abs(half[0])
    back = ellipsoid(half, (33.0, -76.0, 0.0), (30.0, 20.0, 99.0))
    signal = paint(signal, MUSCLE, step(back, EDGE))
    phase = np.abs((points[2] / VERTEBRA_PITCH) % 1.0 - 0.5) * VERTEBRA_PITCH
    vertebra = ellipsoid(half, (0.0, -54.0, 0.0), (22.0, 17.0, 99.0))
    process = capsule(half, (0.0, -82.0, 0.0), (0.0, -92.0, 0.0), (6.0, 4.0))
    wings = capsule(half, (8.0, -76.0, 0.0), (27.0, -80.0, 0.0), (6.0, 4.0))
    wings = np.minimum(wings, 9.0 - phase)
    signal = paint(signal, 0.8 * BONE, step(np.maximum(process, wings), EDGE))
    signal = paint(signal, BONE, step(vertebra, EDGE))
    signal = paint(signal, SPONGY_BONE, step(vertebra - 2.5, EDGE))
    signal = paint(signal, 85.0, step(vertebra - 1.0, EDGE) * step(phase - 12.5, EDGE))
    canal = ellipsoid(half, (0.0, -77.0, 0.0), (9.0, 7.0, 99.0))
    return paint(signal, FLUID + 20.0, step(canal, EDGE))


def _paint_bowel(signal: Array, points: Array, belly: Array, patient: Patient) -> Array:
    """Loops of bowel below the stomach, some of them with gas in front."""
    room = np.minimum(np.minimum(belly - 5.0, -12.0 - points[2]), points[1] + 22.0)
    loops, share = patient.bowel(points), step(room, EDGE)
    signal = paint(signal, 42.0, share * step(np.abs(loops) - np.float32(0.25), 0.2))
    gas = step(loops - 1.3, 0.2) * step(points[1] - 25.0, EDGE)
    return paint(signal, 0.9 * AIR, share * gas)


def _paint_stomach(signal: Array, points: Array, belly: Array, patient: Patient) -> Array:
    """The stomach's wall, fluid in it, and gas above the fluid of a patient on the back."""
    body = ellipsoid(points, (-62.0, 26.0, 14.0), (42.0, 42.0, 46.0))
    stomach = np.minimum(body, belly - 4.0)
    signal = paint(signal, MUSCLE + 15.0, step(stomach, EDGE))
    lumen = step(stomach - 4.0, EDGE)
    signal = paint(signal, FLUID + 12.0, lumen)
    return paint(signal, AIR, lumen * step(points[1] - patient.gas_level, EDGE))


def _kidneys(points: Array) -> Array:
    """Signed distance inside the kidneys in mm; the right one lies lower, below the liver."""
    right = ellipsoid(points, (57.0, -48.0, -54.0), (26.0, 26.0, 52.0))
    return np.maximum(right, ellipsoid(points, (-57.0, -48.0, -40.0), (26.0, 26.0, 52.0)))


def _paint_kidneys(signal: Array, points: Array, kidneys: Array, patient: Patient) -> Array:
    """Kidneys with fat in their sinus, which opens to the middle and the front."""
    signal = paint(signal, patient.kidney, step(kidneys, EDGE))
    half = points.copy()
    half[0] = np.abs(points[0])
    sinus = ellipsoid(half, (44.0, -43.0, -47.0), (17.0, 9.0, 26.0))
    return paint(signal, 0.6 * FAT, step(sinus, 4.0) * step(kidneys + 8.0, EDGE))


def _paint_great_vessels(signal: Array, points: Array, patient: Patient) -> Array:
    """Aorta in front of the spine, vena cava to the right of it."""
    aorta = capsule(points, (-9.0, -27.0, -200.0), (-13.0, -30.0, 200.0), (10.0, 11.0))
    cava = capsule(points, (19.0, -28.0, -200.0), (19.0, -20.0, 200.0), (10.5, 12.0))
    signal = paint(signal, patient.aorta, step(aorta, EDGE))
    return paint(signal, patient.aorta - 25.0, step(cava, EDGE) * step(84.0 - points[2], EDGE))


def _liver(points: Array, slow: Array, patient: Patient) -> Array:
    """Signed distance in mm inside both lobes, before the neighbours press into them."""
    x, y, z = points
    right = ellipsoid(points, (60.0, 4.0, 0.0), (84.0, 92.0, 84.0))
    hilum = 0.8 * (x - 8.0) + 0.6 * (y + 12.0)  # faces vena cava, spine and stomach
    underside = 0.55 * (x - 18.0) + 0.84 * (z + 42.0)
    right = np.minimum(right, np.minimum(hilum, underside))
    left = ellipsoid(points, (2.0, 50.0, 22.0), (72.0 * patient.left_lobe, 40.0, 40.0))
    return np.asarray(np.maximum(right, left) + 3.0 * slow)


def _paint_liver_vessels(signal: Array, points: Array, liver: Array, patient: Patient) -> Array:
    """Branches of the portal vein from the hilum, and three hepatic veins to the vena cava."""
    inside = liver > -EDGE
    local = points[:, inside]
    hilum, fork, confluence = (18.0, 8.0, -20.0), (44.0, 8.0, -6.0), (22.0, -16.0, 48.0)
    branches = np.maximum.reduce(
        (
            capsule(local, hilum, fork, (7.0, 6.0)),
            capsule(local, fork, (84.0, 32.0, 8.0), (5.0, 2.0)),
            capsule(local, fork, (88.0, -28.0, -8.0), (5.5, 2.0)),
            capsule(local, fork, (22.0, 46.0, 12.0), (5.0, 3.5)),
            capsule(local, (22.0, 46.0, 12.0), (-30.0, 56.0, 24.0), (3.5, 1.5)),
            capsule(local, confluence, (106.0, -6.0, 16.0), (6.5, 2.0)),
            capsule(local, confluence, (66.0, 48.0, 14.0), (6.5, 2.0)),
            capsule(local, confluence, (-14.0, 44.0, 36.0), (6.0, 2.0)),
        )
    )
    weight = np.zeros_like(liver)
    weight[inside] = step(branches, 3.0) * step(liver[inside] - 2.0, EDGE)
    return paint(signal, patient.vessels, weight)


def _place(body: Abdomen, points: Array, rng: np.random.Generator, depth: float) -> Array:
    """Choose one of the sampled points (3, N) that lies at least ``depth`` mm in the liver."""
    candidates = np.flatnonzero(body.depth > depth)
    if candidates.size == 0:
        raise ValueError(
            f"none of the {points.shape[1]} sampled points lies {depth} mm deep in the liver; "
            f"choose a larger shape, for example {DEFAULT_SHAPE}."
        )
    return np.asarray(points[:, candidates[rng.integers(candidates.size)]])


def _metastases(
    body: Abdomen, points: Array, patient: Patient, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Several hypodense foci that are darkest in their middle."""
    signal, extent = body.hounsfield, np.zeros_like(body.hounsfield)
    for _ in range(int(rng.integers(3, 8))):
        blob = Blob.draw(rng, _place(body, points, rng, 8.0))
        distance = blob.distance(points, rng.uniform(8.0, 16.0), uneven=0.1)
        focus = step(distance, EDGE) * body.liver
        signal = paint(signal, patient.liver - rng.uniform(32.0, 42.0), focus)
        dark = step(distance - 4.0, 6.0) * body.liver
        signal = paint(signal, patient.liver - rng.uniform(48.0, 62.0), dark)
        extent = np.maximum(extent, focus)
    return signal, extent


def _cyst(
    body: Abdomen, points: Array, _: Patient, rng: np.random.Generator
) -> tuple[Array, Array]:
    """One smooth round cyst, as dark as water."""
    blob = Blob.draw(rng, _place(body, points, rng, 14.0))
    extent = step(blob.distance(points, rng.uniform(14.0, 27.0), uneven=0.05), EDGE) * body.liver
    return paint(body.hounsfield, rng.uniform(0.0, 14.0), extent), extent


def _hyperdense(
    body: Abdomen, points: Array, patient: Patient, rng: np.random.Generator
) -> tuple[Array, Array]:
    """One mass that takes up more contrast medium than the liver, unevenly."""
    blob = Blob.draw(rng, _place(body, points, rng, 12.0))
    extent = step(blob.distance(points, rng.uniform(13.0, 24.0), uneven=0.1), EDGE) * body.liver
    bright = patient.liver + rng.uniform(55.0, 85.0) + 8.0 * blob.outline(2.0 * points)
    return paint(body.hounsfield, bright, extent), extent


LIVER_LESIONS: dict[
    str, Callable[[Abdomen, Array, Patient, np.random.Generator], tuple[Array, Array]]
] = {"metastases": _metastases, "cyst": _cyst, "hyperdense": _hyperdense}
LIVER_LESION_KINDS = tuple(LIVER_LESIONS)
