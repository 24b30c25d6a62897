"""Seeded phantom OCT of the macula: single B-scans and volumes of them.

Coordinates of the eye are in mm: x along the B-scan, depth from the vitreous to the sclera, y from
B-scan to B-scan, with the fovea near x = y = 0. Values are log-compressed reflectivity from 0 to 1.
Figures measured on phantoms say nothing about patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mcmiad_monai.phantom.brain import GRID, LESION, NOISE, SUBJECT, store, stream
from mcmiad_monai.phantom.fields import Array, SmoothField, paint, step
from mcmiad_monai.phantom.lesions import HALF

# Pixels along the B-scan and in depth: width and height of the picture.
DEFAULT_SHAPE = (256, 192)
DEFAULT_SCANS = 12
# Range of the field of view in mm: along the B-scan, in depth, and from the first B-scan to the
# last one.
FIELD_OF_VIEW = ((5.6, 6.4), (1.05, 1.25), (3.6, 4.4))
# A single B-scan runs this far from the fovea at most, in mm.
OFF_FOVEA = 0.25
# Devices scan from either side and upwards or downwards; all begin an A-scan in the vitreous.
ORIENTATIONS = ("LPS", "RPS", "LPI", "RPI")
# Lower edge of each layer as a share of the inner retina away from the fovea; nothing of it but a
# rest is left in the pit. From the vitreous: nerve fibres, ganglion cells with the inner plexiform
# layer, inner nuclear and outer plexiform layer.
INNER_SHARES = (0.13, 0.58, 0.81, 1.0)
INNER_REST = 0.12
# Reflectivity in the order of depth: the inner layers, then outer nuclear layer, ellipsoid zone,
# outer segments and retinal pigment epithelium (RPE).
INNER_REFLECTIVITY = (0.66, 0.47, 0.31, 0.47)
OUTER_REFLECTIVITY = (0.23, 0.74, 0.45, 0.92)
VITREOUS, CHOROID, LUMEN, SCLERA, CLEAR_FLUID = 0.05, 0.58, 0.30, 0.16, 0.06
# Thickness in mm of ellipsoid zone, outer segments and RPE.
BANDS = (0.022, 0.022, 0.028)
# Turns the axes of the choroid's texture, so that its period is not met along a B-scan.
TEXTURE_AXES = np.asarray(((0.8, 0.36, 0.48), (-0.6, 0.48, 0.64), (0.0, 0.8, -0.6)), np.float32)
# Edges are as soft as the axial resolution of the device, in mm.
EDGE = 0.009


@dataclass(frozen=True)
class RetinaBScan:
    """One phantom B-scan.

    Attributes
    ----------
    image : (H, W) uint8 array
        Grey levels; rows are depth, with the vitreous on top.
    mask : (H, W) uint8 array
        1 on the lesion, 0 elsewhere.
    lesion : str or None
        Kind of lesion, one of ``RETINA_LESION_KINDS``.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    lesion: str | None


@dataclass(frozen=True)
class RetinaVolume:
    """A phantom volume of B-scans.

    Attributes
    ----------
    image, mask : (I, J, K) uint8 array
        As in `RetinaBScan`; in LPS order an axial slice is one B-scan, with depth towards P.
    affine : (4, 4) float64 array
        From voxel indices to world millimetres (RAS).
    lesion : str or None
        Kind of lesion, one of ``RETINA_LESION_KINDS``.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    lesion: str | None


@dataclass(frozen=True)
class Eye:
    """What differs between normal eyes; lengths in mm."""

    fovea: float
    nasal: float
    inner: float
    outer: float
    pit: float
    floor: float
    tilt: float
    bowl: float
    choroid: float
    vessels: NDArray[np.float64]
    waves: SmoothField
    texture: SmoothField

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Eye:
        """Draw an eye at random, a left or a right one."""
        return cls(
            fovea=rng.normal(0.0, 0.15),
            nasal=float(rng.choice((-1.0, 1.0))),
            inner=rng.uniform(0.185, 0.215),
            outer=rng.uniform(0.070, 0.085),
            pit=rng.uniform(0.42, 0.60),
            floor=rng.uniform(0.62, 0.70),
            tilt=rng.normal(0.0, 0.012),
            bowl=rng.normal(0.006, 0.003),
            choroid=rng.uniform(0.20, 0.28),
            # where retinal vessels cross, how they lean, how wide and how dense their shadows are
            vessels=rng.uniform((-3.2, -0.4, 0.02, 0.25), (3.2, 0.4, 0.045, 0.5), (7, 4)),
            waves=SmoothField(rng, wavelength=2.4, order=1),
            texture=SmoothField(rng, wavelength=0.11, order=1),
        )


@dataclass(frozen=True)
class Grid:
    """Where an eye is sampled, in mm: ``x`` (W,), ``depth`` (H,) and ``y`` (N,)."""

    x: Array
    depth: Array
    y: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, shape: tuple[int, int], scans: int) -> Grid:
        """Draw a field of view; one scan alone runs close to the fovea."""
        wide, deep, high = (rng.uniform(*limits) for limits in FIELD_OF_VIEW)
        offset = rng.uniform(-OFF_FOVEA, OFF_FOVEA)
        x = (np.arange(shape[0]) + 0.5) / shape[0] * wide - wide / 2
        depth = (np.arange(shape[1]) + 0.5) / shape[1] * deep
        y = np.linspace(-high / 2, high / 2, scans) if scans > 1 else np.asarray([offset])
        return cls(x.astype(np.float32), depth.astype(np.float32), y.astype(np.float32))


@dataclass(frozen=True)
class Retina:
    """Surfaces of a retina as depths in mm.

    Attributes
    ----------
    edges : (8, W, N) array
        Upper edges of the layers from the nerve fibres to the RPE.
    base : (W, N) array
        Bruch's membrane, on which a healthy RPE lies.
    """

    edges: Array
    base: Array

    @property
    def thickness(self) -> Array:
        """From the vitreous to the RPE in mm, (W, N)."""
        return np.asarray(self.edges[-1] - self.edges[0])

    def lifted(self, height: Array, *, with_rpe: bool) -> Retina:
        """Lift the outer retina by ``height`` (W, N) in mm; the layers above it become thinner."""
        share = (self.edges - self.edges[0]) / self.thickness  # (8, W, N)
        if not with_rpe:
            share[-1] = 0.0
        return Retina(self.edges - share * height, self.base)


def make_retina_bscan(
    seed: int, *, lesion: str | None = None, shape: tuple[int, int] = DEFAULT_SHAPE
) -> RetinaBScan:
    """Make one B-scan through or beside the fovea; the same seed gives the same one.

    The same seed with and without a lesion gives the same eye with the same speckle. Subretinal
    fluid and drusen push up what lies over them; the mask is the fluid or the deposit with the RPE
    on it.

    Parameters
    ----------
    seed : int
        Not negative.
    lesion : str, optional
        One of ``RETINA_LESION_KINDS``; none makes a healthy eye.
    shape : (int, int)
        Width and height of the picture.

    Raises
    ------
    ValueError
        If the kind of lesion is not known.
    """
    image, mask, _ = _scan(seed, lesion, shape, 1)
    return RetinaBScan(image[:, :, 0].T.copy(), mask[:, :, 0].T.copy(), lesion)


def make_retina_volume(
    seed: int,
    *,
    lesion: str | None = None,
    shape: tuple[int, int] = DEFAULT_SHAPE,
    scans: int = DEFAULT_SCANS,
    orientation: str | None = None,
) -> RetinaVolume:
    """Make a volume of B-scans across the macula; see `make_retina_bscan`.

    Parameters
    ----------
    seed, lesion, shape : int, str, (int, int)
        As for a single B-scan.
    scans : int
        Number of B-scans, from the lowest to the highest; at least 2.
    orientation : str, optional
        Axis codes in which to store the volume; by default the seed chooses one of
        ``ORIENTATIONS``. Depth goes to the back of the patient.

    Raises
    ------
    ValueError
        If the kind of lesion is not known or there are fewer than 2 B-scans.
    """
    if scans < 2:
        raise ValueError(f"scans is {scans}; a volume needs at least 2 B-scans.")
    image, mask, grid = _scan(seed, lesion, shape, scans)
    codes = orientation or ORIENTATIONS[seed % len(ORIENTATIONS)]
    axes = (-grid.x[::-1], -grid.depth[::-1], grid.y)  # x and depth grow to L and P
    affine = np.eye(4)
    affine[:3, :3] = np.diag([float(np.diff(axis).mean()) for axis in axes])
    affine[:3, 3] = [axis[0] for axis in axes]
    stored = store(image[::-1, ::-1].astype(np.int16), mask[::-1, ::-1], affine, codes, lesion)
    return RetinaVolume(stored.image.astype(np.uint8), stored.mask, stored.affine, lesion)


def _scan(
    seed: int, lesion: str | None, shape: tuple[int, int], scans: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Grid]:
    """Image and mask (W, H, N) of an eye, and where they were sampled."""
    if lesion is not None and lesion not in RETINA_LESIONS:
        raise ValueError(f"lesion {lesion!r} is not known; choose one of {sorted(RETINA_LESIONS)}.")
    grid = Grid.draw(stream(seed, GRID), shape, scans)
    eye = Eye.draw(stream(seed, SUBJECT))
    retina = build_retina(grid, eye)
    if lesion is None:
        signal = paint_retina(retina, grid, eye)
        mask = np.zeros(signal.shape, np.uint8)
    else:
        signal, extent = RETINA_LESIONS[lesion](retina, grid, eye, stream(seed, LESION))
        mask = (extent > HALF).astype(np.uint8)
    signal = signal * _shadows(retina, grid, eye)
    return _acquire(signal, stream(seed, NOISE)), mask, grid


def build_retina(grid: Grid, eye: Eye) -> Retina:
    """Surfaces of a healthy retina."""
    x, y = np.meshgrid(grid.x, grid.y, indexing="ij")  # (W, N)
    waves = eye.waves(np.stack((x.ravel(), y.ravel(), np.zeros(x.size, np.float32))))
    base = eye.floor * float(grid.depth[-1]) + eye.tilt * x - eye.bowl * (x**2 + y**2)
    base = base + 0.010 * waves.reshape(x.shape)
    radius = np.hypot(x - eye.fovea, y)
    pit = np.exp(-((radius / eye.pit) ** 2))
    rim = np.exp(-(((radius - 2.3 * eye.pit) / 0.6) ** 2))
    fade = 1.0 - 0.035 * radius**1.5  # thinner towards the periphery
    inner = eye.inner * ((1.0 - (1.0 - INNER_REST) * pit) * fade + 0.14 * rim)
    shares = np.asarray(INNER_SHARES)[:, None, None] * np.ones_like(x)  # (4, W, N)
    shares[0] += 0.022 * eye.nasal * x  # nerve fibres gather towards the optic disc
    thickness = np.diff(shares, axis=0, prepend=0.0) * inner
    outer = (eye.outer + 0.035 * pit, *BANDS)
    thickness = np.concatenate((thickness, [np.broadcast_to(t, x.shape) for t in outer]))
    bottoms = base - np.cumsum(thickness[::-1], axis=0)[::-1]  # (8, W, N)
    return Retina(bottoms.astype(np.float32), base.astype(np.float32))


def paint_retina(retina: Retina, grid: Grid, eye: Eye) -> Array:
    """Reflectivity (W, H, N) without shadows and speckle: vitreous, layers, choroid, sclera."""
    depth = grid.depth[:, None]
    signal = np.full((grid.x.size, grid.depth.size, grid.y.size), VITREOUS, np.float32)
    for edge, value in zip(retina.edges, INNER_REFLECTIVITY + OUTER_REFLECTIVITY, strict=True):
        signal = paint(signal, value, step(depth - edge[:, None], EDGE))
    below = depth - retina.base[:, None]  # (W, H, N)
    lumen = step(_texture(grid, eye) - 0.2, 0.7) * step(below - 0.02, 0.03)
    choroid = (CHOROID - (CHOROID - LUMEN) * lumen) * np.exp(-np.maximum(below, 0.0) / 0.45)
    signal = paint(signal, choroid, step(below, EDGE))
    return paint(signal, SCLERA, step(below - eye.choroid, 0.12))


def _texture(grid: Grid, eye: Eye) -> Array:
    """Vessels of the choroid as a random field, (W, H, N)."""
    points = np.stack(np.meshgrid(0.6 * grid.x, grid.depth, grid.y, indexing="ij"))
    values = eye.texture(TEXTURE_AXES @ points.reshape(3, -1))
    return values.reshape(points.shape[1:])


def _shadows(retina: Retina, grid: Grid, eye: Eye) -> Array:
    """What the vessels of the inner retina leave of the light below them, (W, H, N)."""
    x, y = np.meshgrid(grid.x, grid.y, indexing="ij")
    dark = np.zeros_like(x)
    for place, lean, width, density in eye.vessels:
        across = (x - place - lean * y) / width
        outside = step(np.hypot(x - eye.fovea, y) - 0.5, 0.2)  # the fovea has no vessels
        dark = np.maximum(dark, density * np.exp(-(across**2)) * outside)
    below = step(grid.depth[:, None] - retina.edges[1][:, None], 0.02)
    return np.asarray(1.0 - dark[:, None] * below)


def _acquire(signal: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Speckle, the noise of the detector and a device's gain: (W, H, N) to grey levels."""
    gain, strength, floor = rng.uniform((195.0, 0.5, 9.0), (235.0, 0.7, 14.0))
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(noise, (0.7, 0.5, 0.0))  # B-scans are independent
    dark = rng.standard_normal(signal.shape, dtype=np.float32)
    grey = gain * signal * np.exp(np.float32(strength) * grain) + floor * (1.0 + 0.4 * dark)
    return np.rint(np.clip(grey, 0.0, 255.0)).astype(np.uint8)


def _spot(
    grid: Grid, eye: Eye, rng: np.random.Generator, reach: float
) -> tuple[float, float, float]:
    """A place within ``reach`` mm of the fovea on a B-scan, and half the gap between B-scans."""
    near = np.flatnonzero(np.abs(grid.y) <= max(reach, float(np.abs(grid.y).min())))
    y = grid.y[near[rng.integers(near.size)]]
    gap = float(grid.y[1] - grid.y[0]) if grid.y.size > 1 else 0.0
    return eye.fovea + rng.uniform(-reach, reach), float(y), gap / 2


def _away(grid: Grid, spot: tuple[float, float, float], radius: float) -> Array:
    """Distance from a spot as a share of ``radius`` mm, (W, N); wide enough to meet a B-scan."""
    x, y, gap = spot
    across, along = np.meshgrid(grid.x - x, grid.y - y, indexing="ij")
    return np.asarray(np.hypot(across / radius, along / max(radius, gap)))


def _intraretinal_fluid(
    retina: Retina, grid: Grid, eye: Eye, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Dark cysts within the inner and outer nuclear layers."""
    signal = paint_retina(retina, grid, eye)
    extent = np.zeros_like(signal)
    for _ in range(int(rng.integers(3, 7))):
        spot, radius = _spot(grid, eye, rng, 1.1), rng.uniform(0.14, 0.34)
        height = np.minimum(rng.uniform(0.045, 0.075), 0.34 * retina.thickness)  # (W, N)
        middle = retina.edges[0] + rng.uniform(0.42, 0.60) * retina.thickness
        offset = (grid.depth[:, None] - middle[:, None]) / height[:, None]  # (W, H, N)
        away = np.hypot(offset, _away(grid, spot, radius)[:, None])
        extent = np.maximum(extent, step((1.0 - away) * height[:, None], EDGE))
    return paint(signal, CLEAR_FLUID, extent), extent


def _subretinal_fluid(
    retina: Retina, grid: Grid, eye: Eye, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A dark dome between outer segments and RPE."""
    away = _away(grid, _spot(grid, eye, rng, 0.6), rng.uniform(0.7, 1.3))
    height = rng.uniform(0.08, 0.12) * np.clip(1.0 - away**2, 0.0, 1.0)
    height = np.minimum(height, 0.5 * retina.thickness)
    lifted = retina.lifted(height, with_rpe=False)
    floor = retina.edges[-1][:, None]  # (W, 1, N)
    depth, high = grid.depth[:, None], height[:, None]
    extent = step(depth - floor + high, EDGE) * step(floor - depth, EDGE)
    extent *= step(high - EDGE / 2, EDGE)  # where nothing is lifted, there is no fluid
    return paint(paint_retina(lifted, grid, eye), CLEAR_FLUID, extent), extent


def _drusen(retina: Retina, grid: Grid, eye: Eye, rng: np.random.Generator) -> tuple[Array, Array]:
    """Mounds of grey deposits between Bruch's membrane and the RPE."""
    height = np.zeros_like(retina.base)
    for _ in range(int(rng.integers(5, 11))):
        away = _away(grid, _spot(grid, eye, rng, 1.7), rng.uniform(0.18, 0.40))
        mound = np.clip(1.0 - away**2, 0.0, 1.0) ** 2
        height = np.maximum(height, rng.uniform(0.045, 0.085) * mound)
    lifted = retina.lifted(height, with_rpe=True)
    depth, top = grid.depth[:, None], lifted.edges[-1][:, None]
    signal = paint_retina(lifted, grid, eye)
    # lower mounds are hidden in the thickness of the RPE
    above = step(retina.base[:, None] - depth, EDGE) * step(height - 0.012, EDGE)[:, None]
    signal = paint(signal, rng.uniform(0.42, 0.52), step(depth - top - BANDS[-1], EDGE) * above)
    return signal, step(depth - top, EDGE) * above


RETINA_LESIONS: dict[
    str, Callable[[Retina, Grid, Eye, np.random.Generator], tuple[Array, Array]]
] = {
    "intraretinal_fluid": _intraretinal_fluid,
    "subretinal_fluid": _subretinal_fluid,
    "drusen": _drusen,
}
RETINA_LESION_KINDS = tuple(RETINA_LESIONS)
