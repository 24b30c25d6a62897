"""What a corruption does to the planes of a volume: MONAI's transforms in the volume's own units.

Every effect takes planes (n, X, Y) that are not negative, one a slice, and a level, and returns
planes of the same shape. Random effects draw the same numbers at every level and scale them, so
that the levels of a study differ by their strength alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    AdjustContrast,
    Affine,
    GaussianSmooth,
    GibbsNoise,
    RandBiasField,
    RandGaussianNoise,
    RandRicianNoise,
    Resize,
    ShiftIntensity,
)
from monai.transforms.utils import Fourier
from torch import Tensor

from mcmiad_monai.transforms.metadata import plain

#: Polynomials of the bias field go up to this degree.
BIAS_DEGREE = 3
#: Times at which a patient moves during an acquisition.
MOVEMENTS = 6


@dataclass(frozen=True)
class Planes:
    """A volume, or a mask of it, as an effect sees it."""

    values: Tensor  # (n, X, Y), above the volume's zero signal
    low: float  # 1st and 99th percentile of the foreground, above the same zero
    high: float
    zooms: tuple[float, float]  # pixel size in mm along X and Y
    hounsfield: float  # units of the volume in one Hounsfield unit; of CT only
    mode: str  # "bilinear", or "nearest" of a mask, where the anatomy moves
    rng: np.random.RandomState  # of this study and corruption


Effect = Callable[[Planes, float], Tensor]


def gaussian_noise(planes: Planes, level: float) -> Tensor:
    """Noise with a standard deviation of ``level`` times the robust range."""
    return _noise(RandGaussianNoise, planes, level)


def rician_noise(planes: Planes, level: float) -> Tensor:
    """Noise of a magnitude image, ``level`` times the robust range in either channel."""
    return _noise(RandRicianNoise, planes, level)


def _noise(kind: Any, planes: Planes, level: float) -> Tensor:
    """Plane by plane: MONAI draws noise in float64, which would be several volumes at once."""
    noise = kind(prob=1, std=level * (planes.high - planes.low), sample_std=False)
    noise.set_random_state(state=planes.rng)
    return torch.cat([_tensor(noise(plane[None])) for plane in planes.values])


def bias_field(planes: Planes, level: float) -> Tensor:
    """Shading by the exponential of a polynomial with coefficients from −level to level."""
    field = RandBiasField(degree=BIAS_DEGREE, coeff_range=(-level, level), prob=1)
    field.set_random_state(state=planes.rng)
    return _tensor(field(planes.values[None]))[0]


def gibbs_ringing(planes: Planes, level: float) -> Tensor:
    """Ringing of slices whose k-space ends at ``1 − level`` of its diagonal."""
    return _tensor(GibbsNoise(level)(planes.values)).abs()


def motion(planes: Planes, level: float) -> Tensor:
    """Ghosts of a patient who shifts by up to ``level`` mm while the lines of k-space are read.

    Each run of lines between two movements sees the patient at another place, which is a linear
    phase (the Fourier shift theorem). The run with the centre of k-space, which holds most of the
    signal, sees the place at rest: so the lesion mask stays right. Shifts lie in the slice.
    """
    columns, lines = planes.values.shape[1:]
    starts = np.sort(planes.rng.uniform(0, lines, MOVEMENTS))
    places = planes.rng.uniform(-level, level, (MOVEMENTS + 1, 2)) / planes.zooms  # pixels
    run = np.searchsorted(starts, np.arange(lines), side="right")  # (Y,) run of each line
    shift = torch.from_numpy(places[run] - places[run[lines // 2]])  # (Y, 2)
    cycles = [torch.from_numpy(np.fft.fftshift(np.fft.fftfreq(n))) for n in (columns, lines)]
    turns = cycles[0][:, None] * shift[:, 0] + cycles[1] * shift[:, 1]  # (X, Y)
    phase = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns).to(torch.complex64)
    spectrum = torch.as_tensor(Fourier.shift_fourier(planes.values, 2)) * phase
    # MONAI's inverse takes the real part; a scanner shows the magnitude
    return _tensor(torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).abs())


def blur(planes: Planes, level: float) -> Tensor:
    """Gaussian blur in the slice, ``level`` times the longer side of the field of view."""
    size = planes.values.shape[1:]
    width = level * max(n * zoom for n, zoom in zip(size, planes.zooms, strict=True))  # mm
    smooth = GaussianSmooth([width / zoom for zoom in planes.zooms])
    # MONAI pads with zeros, which would darken the border
    return _tensor(smooth(planes.values)) / _tensor(smooth(torch.ones(1, *size)))


def contrast(planes: Planes, level: float) -> Tensor:
    """Gamma curve between the ends of the robust range; ``level`` or its inverse, by chance."""
    gamma = level if planes.rng.uniform() < 0.5 else 1 / level
    core = planes.values.clamp(planes.low, planes.high)
    return _tensor(AdjustContrast(gamma)(core)) + (planes.values - core)


def resolution(planes: Planes, level: float) -> Tensor:
    """Pixels that are ``level`` times larger in the slice."""
    return _coarser(planes.values, [1, level, level])


def thick_slices(planes: Planes, level: float) -> Tensor:
    """Slices that are ``level`` times thicker."""
    return _coarser(planes.values, [level, 1, 1])


def hounsfield_shift(planes: Planes, level: float) -> Tensor:
    """``level`` Hounsfield units more or less, by chance."""
    return _tensor(ShiftIntensity(level * planes.hounsfield * _sign(planes.rng))(planes.values))


def rotation(planes: Planes, level: float) -> Tensor:
    """Turn about the centre by ``level`` degrees to either side, by chance.

    In mm, so that nothing shears. What comes into view repeats the border.
    """
    angle = np.deg2rad(level * _sign(planes.rng))  # from X to Y
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = np.diag(1 / np.array(planes.zooms)) @ back @ np.diag(planes.zooms)
    turn = Affine(affine=matrix, mode=planes.mode, padding_mode="border", image_only=True)
    return _tensor(turn(planes.values))


def _coarser(values: Tensor, factors: list[float]) -> Tensor:
    """Average over voxels ``factors`` times larger, and interpolate back, (n, X, Y)."""
    small = values
    for axis, factor in enumerate(factors):
        if factor > 1:
            means = _means(values.shape[axis], factor)  # (m, n)
            small = torch.tensordot(means, small, dims=([1], [axis])).movedim(0, axis)
    return _tensor(Resize(list(values.shape), mode="trilinear")(small[None]))[0]


def _means(n: int, factor: float) -> Tensor:
    """What each of ``n`` voxels counts for in the mean of each larger one, (m, n).

    MONAI's mode ``area`` takes whole voxels, so that 1.5 times larger ones would blur more than
    twice larger ones.
    """
    ends = torch.linspace(0, n, max(1, round(n / factor)) + 1)[:, None]  # (m + 1, 1)
    left = torch.arange(n)
    overlap = torch.minimum(ends[1:], left + 1) - torch.maximum(ends[:-1], left)
    weights = overlap.clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


def _sign(rng: np.random.RandomState) -> float:
    return 1.0 if rng.uniform() < 0.5 else -1.0


def _tensor(values: Any) -> Tensor:
    """Without the metadata and the trace that MONAI's transforms add."""
    return plain(values)
