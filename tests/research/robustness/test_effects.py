"""Effects against independent implementations: scipy, and k-space written out in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from mcmiad_monai.modality import get_modality
from mcmiad_monai.research.robustness.corruptions import (
    CORRUPTIONS,
    StudyCorruptor,
    corruptions_for,
    random_state,
)
from mcmiad_monai.research.robustness.effects import MOVEMENTS

SHAPE = (48, 56, 12)
ZOOMS = (1.6, 1.2, 5.0)


def make_volume(*, masked: bool = False) -> MetaTensor:
    """A textured ellipsoid off the middle, with noisy air or air of exactly zero."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = ((x - 0.1) / 0.7) ** 2 + ((y + 0.05) / 0.75) ** 2 + (z / 2) ** 2 < 1
    tissue = 400 + 90 * np.sin(7 * x + 3 * y * z) + 60 * (x > 0.2) + 8 * rng.standard_normal(SHAPE)
    air = np.zeros(SHAPE) if masked else np.abs(4 * rng.standard_normal(SHAPE))
    values = torch.from_numpy(np.where(inside, tissue, air).astype(np.float32))
    affine = torch.diag(torch.tensor([*ZOOMS, 1.0], dtype=torch.float64))
    return MetaTensor(values[None], affine=affine)


def corrupted(
    volume: MetaTensor, name: str, severity: int, kind: str = "brain_mri"
) -> torch.Tensor:
    corrupt = StudyCorruptor(volume, modality=kind, case="a")
    return corrupt(CORRUPTIONS[name], severity)[0].as_tensor()


def test_rotation_agrees_with_scipy_on_square_pixels() -> None:
    rng = np.random.default_rng(1)
    plane = ndimage.gaussian_filter(rng.random((41, 41)), 2).astype(np.float32)
    volume = MetaTensor(torch.from_numpy(plane)[None, ..., None], affine=torch.eye(4).double())
    image = corrupted(volume, "rotation", 5, kind="retina_oct")[0, ..., 0].numpy()
    errors = [
        np.abs(image - ndimage.rotate(plane, angle, reshape=False, order=1, mode="nearest"))
        for angle in (20, -20)
    ]
    assert min(error[3:-3, 3:-3].max() for error in errors) < 1e-3
    assert max(error[3:-3, 3:-3].max() for error in errors) > 0.02


def test_motion_agrees_with_shifted_images_read_in_turns() -> None:
    volume = make_volume()
    image = corrupted(volume, "motion", 4)
    rng = random_state(0, "motion", "a")
    starts = np.sort(rng.uniform(0, SHAPE[1], MOVEMENTS))
    places = rng.uniform(-5, 5, (MOVEMENTS + 1, 2)) / ZOOMS[:2]
    plane = volume.numpy()[0, ..., 2].astype(np.float64)
    k_space = np.zeros(plane.shape, complex)
    rest = places[(starts <= SHAPE[1] // 2).sum()]
    for run, place in enumerate(places):
        shifted = ndimage.fourier_shift(np.fft.fft2(plane), place - rest)
        lines = [y for y in range(SHAPE[1]) if (starts <= y).sum() == run]
        k_space[:, lines] = np.fft.fftshift(shifted)[:, lines]
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(k_space)))
    np.testing.assert_allclose(image.numpy()[0, ..., 2], expected, atol=0.05)
    assert np.abs(expected - plane).max() > 50


def test_gibbs_ringing_agrees_with_a_sharp_end_of_k_space() -> None:
    volume = make_volume()
    plane = volume.numpy()[0, ..., 5].astype(np.float64)
    spectrum = np.fft.fftshift(np.fft.fft2(plane))
    x, y = np.indices(plane.shape)
    radius = np.hypot(x - (SHAPE[0] - 1) / 2, y - (SHAPE[1] - 1) / 2)
    spectrum[radius > (1 - 0.6) * max(SHAPE[:2]) / np.sqrt(2)] = 0
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum)).real)
    found = corrupted(volume, "gibbs_ringing", 3).numpy()[0, ..., 5]
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_contrast_is_a_gamma_curve_within_the_robust_range_and_keeps_what_is_beyond() -> None:
    volume = make_volume()
    volume[0, 0, 0, 0] = 9000  # a hot pixel does not set the scale
    values = volume.numpy()
    image = corrupted(volume, "contrast", 5, kind="retina_oct").numpy()
    assert image[0, 0, 0, 0] == 9000
    low, high = np.percentile(values, [1, 99])
    core = (values > low) & (values < high)
    share, found = (values[core] - low) / (high - low), (image[core] - low) / (high - low)
    assert min(np.abs(found - share**gamma).max() for gamma in (2.7, 1 / 2.7)) < 1e-3


def test_blur_does_not_darken_the_border() -> None:
    volume = make_volume()
    volume[:] = 100
    volume[0, 24, 28, 3] = 400
    image = corrupted(volume, "blur", 5, kind="retina_oct")
    torch.testing.assert_close(image[0, 0], torch.full_like(image[0, 0], 100))


@pytest.mark.parametrize(
    "name", [c.name for c in corruptions_for("brain_mri") if c.mask_effect is None]
)
def test_background_that_was_masked_stays_masked(name: str) -> None:
    volume = make_volume(masked=True)
    assert not corrupted(volume, name, 5)[volume.as_tensor() == 0].any()


def test_noise_of_the_air_is_corrupted_as_well() -> None:
    air = make_volume(masked=True).as_tensor() == 0
    for name in ("rician_noise", "motion", "blur"):
        assert corrupted(make_volume(), name, 5)[air].mean() > 1.5 * make_volume()[air].mean()


@pytest.mark.parametrize("name", [c.name for c in corruptions_for("brain_mri")])
def test_slices_may_run_along_any_axis(name: str) -> None:
    volume = make_volume()
    first = replace(get_modality("brain_mri"), slice_axis=0)
    affine = torch.diag(torch.tensor([ZOOMS[2], *ZOOMS[:2], 1.0], dtype=torch.float64))
    turned = MetaTensor(volume.as_tensor().movedim(3, 1).contiguous(), affine=affine)
    image, _ = StudyCorruptor(turned, modality=first, case="a")(CORRUPTIONS[name], 3)
    # the foreground is found slice by slice, so the robust range may differ by a grey
    expected = corrupted(volume, name, 3)
    torch.testing.assert_close(image.as_tensor().movedim(1, 3), expected, rtol=2e-2, atol=4.0)
