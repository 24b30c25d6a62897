"""Smooth random functions of world millimetres, and the soft steps that paint with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]

# Lattice nodes a side. The lattice is periodic, so the function is defined everywhere.
LATTICE = 32
# Nodes per wavelength, by spline order: enough to follow the wave without visible corners.
NODES_PER_WAVELENGTH = {1: 10.0, 3: 5.0}
# Width of the pass band in octaves of e; narrow bands make evenly spaced folds.
BAND = 0.35


class SmoothField:
    """A random function of position with unit variance and one dominant wavelength.

    White noise on a periodic lattice is band-passed in Fourier space and interpolated, so the
    value at a point does not depend on the grid that samples it. ``wavelength`` is in mm; ``order``
    of the spline is 3 for fine fields and 1 for slow ones.
    """

    def __init__(self, rng: np.random.Generator, *, wavelength: float, order: int = 3) -> None:
        nodes = NODES_PER_WAVELENGTH[order]
        self.spacing = wavelength / nodes
        self.order = order
        noise = np.fft.rfftn(rng.standard_normal((LATTICE,) * 3))
        full, half = np.fft.fftfreq(LATTICE), np.fft.rfftfreq(LATTICE)
        frequency = np.sqrt(
            full[:, None, None] ** 2 + full[None, :, None] ** 2 + half[None, None, :] ** 2
        )
        frequency[0, 0, 0] = 1e-6  # the mean is far outside the band
        band = np.exp(-0.5 * (np.log(frequency * nodes) / BAND) ** 2)
        values = np.fft.irfftn(noise * band, s=(LATTICE,) * 3, axes=(0, 1, 2))
        values /= values.std()
        if order > 1:
            values = ndimage.spline_filter(values, order=order, mode="grid-wrap")
        self.coefficients = values.astype(np.float32)

    def __call__(self, points: Array) -> Array:
        """Evaluate at ``points`` (3, N) in mm; returns (N,)."""
        return np.asarray(
            ndimage.map_coordinates(
                self.coefficients,
                points / self.spacing,
                output=np.float32,
                order=self.order,
                mode="grid-wrap",
                prefilter=False,
            )
        )


def step(distance: Array, width: float = 1.6) -> Array:
    """Soft step over a signed distance in mm: 0 outside, 1 inside, a ramp of ``width`` between."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0.0, 1.0)


def paint(signal: Array, value: Array | float, weight: Array) -> Array:
    """Lay ``value`` over ``signal`` where ``weight`` is 1, mixing in between."""
    return signal + (np.float32(value) - signal) * weight


def ellipsoid(
    points: Array, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Array:
    """First-order signed distance in mm to an ellipsoid, positive inside; (3, N) to (N,)."""
    inverse = 1.0 / np.asarray(radii, np.float32)[:, None]
    scaled = (points - np.asarray(centre, np.float32)[:, None]) * inverse
    level = np.sqrt(np.einsum("ij,ij->j", scaled, scaled))
    gradient = np.sqrt(np.einsum("ij,ij->j", scaled * inverse, scaled * inverse))
    return np.asarray((1.0 - level) * level / np.maximum(gradient, np.float32(1e-6)))


def capsule(
    points: Array,
    start: tuple[float, float, float],
    end: tuple[float, float, float],
    radii: tuple[float, float],
) -> Array:
    """Signed distance in mm to a segment with a radius at either end, positive inside."""
    first = np.asarray(start, np.float32)[:, None]
    axis = np.asarray(end, np.float32)[:, None] - first
    offset = points - first
    along = np.clip(np.sum(offset * axis, axis=0) / np.sum(axis * axis), 0.0, 1.0)
    off_axis = offset - axis * along
    radius = radii[0] + (radii[1] - radii[0]) * along
    return np.asarray(radius - np.sqrt(np.einsum("ij,ij->j", off_axis, off_axis)))
