"""Corruptions: repeatable, graded, in place, and what each does, by scipy and k-space in numpy."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scipy.stats import norm
from torch import Tensor

from mcmiad_monai.modality import get_modality
from mcmiad_monai.research.robustness.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    StudyCorruptor,
    corruptions_for,
    random_state,
)
from mcmiad_monai.research.robustness.effects import Planes, resolution
from mcmiad_monai.transforms import VolumeError

SHAPE = (48, 40, 6)
#: 1.5 × 2 × 4 mm, turned about the slice axis and with an offset.
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
AFFINE = np.block(
    [[TURN @ np.diag([1.5, 2.0, 4.0]), np.array([[5.0], [-7.0], [11.0]])], [np.eye(4)[3:]]]
)
MODALITY = {name: get_modality(m) for name, m in (("mri", "brain_mri"), ("ct", "liver_ct"))}
MODALITY["oct"] = get_modality("retina_oct")
PAIRS = [(recipe, c.name) for c in CORRUPTIONS.values() for recipe in c.recipes]
IN_MRI = list(corruptions_for(MODALITY["mri"]))
X, Y, _ = np.indices(SHAPE)
INSIDE = ((X - 23.5) / 20) ** 2 + ((Y - 19.5) / 16) ** 2 < 1


def volume_of(values: np.ndarray | Tensor, **meta: object) -> MetaTensor:
    tensor = torch.as_tensor(values).float()[None]
    return MetaTensor(tensor, affine=torch.from_numpy(AFFINE), meta=meta)


def body(recipe: str, *, air: float = 4.0) -> MetaTensor:
    """An ellipse with texture in every slice, in the units of the modality."""
    rng = np.random.default_rng(3)
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), (2, 2, 1))
    texture /= texture.std()
    values = {
        "mri": np.where(INSIDE, 300 + 60 * texture, air * rng.random(SHAPE)),
        "ct": np.where(INSIDE, 50 + 40 * texture, -1000.0),
        "oct": 90 + 30 * texture + 60 * INSIDE,
    }[recipe]
    return volume_of(np.maximum(values, -1000 if recipe == "ct" else 0))


def square() -> MetaTensor:
    """A lesion off the middle."""
    return volume_of((X >= 30) & (X < 36) & (Y >= 12) & (Y < 18) & (np.indices(SHAPE)[2] // 2 == 1))


def corruptor(volume: MetaTensor, recipe: str = "mri", **options: object) -> StudyCorruptor:
    return StudyCorruptor(volume, modality=MODALITY[recipe], **{"case": "a", **options})  # type: ignore[arg-type]


def corrupted(
    name: str, severity: int, recipe: str = "mri", volume: MetaTensor | None = None
) -> Tensor:
    corrupt = corruptor(body(recipe) if volume is None else volume, recipe)
    return corrupt(CORRUPTIONS[name], severity).as_tensor()


@pytest.mark.parametrize(("recipe", "name"), PAIRS)
def test_geometry_stays_and_the_input_is_left_alone(recipe: str, name: str) -> None:
    volume = body(recipe)
    volume.meta["filename_or_obj"] = "a.nii"
    before = volume.as_tensor().clone()
    corrupt = corruptor(volume, recipe)
    image = corrupt(CORRUPTIONS[name], 3)
    assert image.dtype == torch.float32
    for found in (image, corrupt.moved(square(), CORRUPTIONS[name], 3)):
        assert found.shape == volume.shape
        np.testing.assert_array_equal(found.affine, AFFINE)
    assert image.meta["filename_or_obj"] == "a.nii"
    assert torch.equal(volume.as_tensor(), before)
    assert torch.isfinite(image).all()


@pytest.mark.parametrize(("recipe", "name"), [p for p in PAIRS if p[1] != "rotation"])
def test_every_severity_changes_more_than_the_one_before(recipe: str, name: str) -> None:
    clean = body(recipe).as_tensor()
    change = [float((corrupted(name, s, recipe) - clean).square().mean()) for s in SEVERITIES]
    assert change[0] > 0
    # six slices cannot be made 2.5, 3 and 4 times thicker: these are one
    assert all(a <= 1.02 * b for a, b in pairwise(change))
    assert change[-1] > 1.5 * change[0]


def test_numbers_follow_case_and_seed_and_not_the_order_of_conditions() -> None:
    corrupt = corruptor(body("mri"))
    for name in ("motion", "bias_field", "rician_noise", "rotation", "contrast"):
        assert torch.equal(corrupt(CORRUPTIONS[name], 2).as_tensor(), corrupted(name, 2))
    for name in ("motion", "bias_field", "rician_noise"):
        for other in ({"case": "b"}, {"seed": 1}):
            found = corruptor(body("mri"), **other)(CORRUPTIONS[name], 2)
            assert not torch.equal(found.as_tensor(), corrupted(name, 2))


@pytest.mark.parametrize("name", IN_MRI)
def test_strength_follows_the_scale_of_the_volume(name: str) -> None:
    large = corrupted(name, 3, volume=volume_of(body("mri")[0] * 50)) / 50
    torch.testing.assert_close(large, corrupted(name, 3), rtol=1e-3, atol=0.2)


def test_noise_has_the_stated_standard_deviation() -> None:
    values = body("ct").as_tensor()
    change = corrupted("gaussian_noise", 3, "ct") - values
    low, high = np.percentile(values[values > -500].numpy(), (1, 99))
    inside = change[values > -500]
    assert float(inside.std()) == pytest.approx(0.07 * (high - low), rel=0.03)
    assert abs(float(inside.mean())) < 0.01 * (high - low)
    # air that was masked to one value stays, or noise would become foreground
    assert not change[values < -500].any()


def test_rician_noise_lifts_the_background_by_its_mean() -> None:
    values, change = body("mri").as_tensor(), corrupted("rician_noise", 5)
    low, high = np.percentile(values[values > 50].numpy(), (1, 99))
    # Rayleigh: mean σ √(π / 2); the faint signal there adds little
    expected = 0.16 * (high - low) * math.sqrt(math.pi / 2)
    assert float(change[values < 5].mean()) == pytest.approx(expected, rel=0.03)
    assert float(change.min()) >= 0


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shift_is_of_the_stated_hounsfield_units(severity: int) -> None:
    values = body("ct").as_tensor()
    change = (corrupted("hu_shift", severity, "ct") - values)[values > -500]
    expected = torch.full_like(change, (10, 20, 40, 60, 100)[severity - 1])
    torch.testing.assert_close(change.abs(), expected, atol=1e-3, rtol=0)


def test_shift_of_a_picture_is_that_of_its_window() -> None:
    grey = (body("ct").as_tensor()[0].clamp(-200, 250) + 200) / 450 * 255
    found = corrupted("hu_shift", 4, "ct", volume_of(grey, picture=True))[0]
    middle = (grey > 60) & (grey < 195)
    expected = torch.full_like(grey[middle], 60 / 450 * 255)
    torch.testing.assert_close((found - grey)[middle].abs(), expected, atol=1e-3, rtol=0)
    assert 0 <= float(found.min()) <= float(found.max()) <= 255


@pytest.mark.parametrize(("severity", "degrees"), [(2, 5), (5, 20)])
def test_lesion_turns_with_the_image(severity: int, degrees: int) -> None:
    lesion = square()
    bright = torch.where(lesion.as_tensor() > 0, 5000, body("mri").as_tensor())
    corrupt = corruptor(volume_of(bright[0]))
    image = corrupt(CORRUPTIONS["rotation"], severity).as_tensor()
    found = corrupt.moved(lesion, CORRUPTIONS["rotation"], severity).as_tensor()
    assert set(found.unique().tolist()) == {0, 1}
    hot = (image > 2500).float()
    assert float(2 * (hot * found).sum() / (hot.sum() + found.sum())) > 0.9
    # in mm about the middle of the slice, the lesion keeps its distance and goes by the angle
    middle = (np.array(SHAPE) - 1) / 2
    before, after = (
        (np.argwhere(m[0].numpy() > 0).mean(0) - middle)[:2] * (1.5, 2.0)
        for m in (lesion.as_tensor(), found)
    )
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), abs=0.5)
    turned = np.rad2deg(np.arctan2(*after[::-1]) - np.arctan2(*before[::-1]))
    assert abs(turned) == pytest.approx(degrees, abs=2)


def test_rotation_agrees_with_scipy_on_square_pixels() -> None:
    rng = np.random.default_rng(1)
    plane = ndimage.gaussian_filter(rng.random((41, 41)), 2).astype(np.float32)
    volume = MetaTensor(torch.from_numpy(plane)[None, ..., None], affine=torch.eye(4).double())
    image = corrupted("rotation", 5, "oct", volume)[0, ..., 0].numpy()
    errors = [
        np.abs(image - ndimage.rotate(plane, angle, reshape=False, order=1, mode="nearest"))
        for angle in (20, -20)
    ]
    assert min(error[3:-3, 3:-3].max() for error in errors) < 1e-3
    assert max(error[3:-3, 3:-3].max() for error in errors) > 0.02


def test_blur_is_a_gaussian_in_millimetres_that_does_not_darken_the_border() -> None:
    clean = body("mri").as_tensor()[0].numpy()
    width = 0.015 * max(48 * 1.5, 40 * 2.0)  # mm
    expected, weight = clean.astype(np.float64), np.ones(SHAPE)
    for axis, zoom in enumerate((1.5, 2.0)):
        edges = np.arange(-8, 10) - 0.5
        kernel = np.diff(norm.cdf(edges, scale=width / zoom))  # over the width of each pixel
        expected, weight = (
            ndimage.convolve1d(v, kernel, axis, mode="constant") for v in (expected, weight)
        )
    found = corrupted("blur", 4)[0].numpy()
    assert np.abs(found - expected / weight).max() < 0.002 * (clean.max() - clean.min())


def test_coarse_pixels_are_means_of_blocks() -> None:
    found = corrupted("resolution", 2)[0]  # twice the pixel size
    means = body("mri").as_tensor()[0].reshape(24, 2, 20, 2, 6).mean((1, 3)).numpy()  # (24, 20, 6)
    # pixels stand a quarter of a block to either side of the block's centre
    x, y = np.meshgrid(np.arange(48) / 2 - 0.25, np.arange(40) / 2 - 0.25, indexing="ij")
    for k in range(6):
        expected = ndimage.map_coordinates(means[..., k], [x, y], order=1, mode="nearest")
        np.testing.assert_allclose(found[..., k], expected, atol=1e-2)


def test_pixels_half_as_large_again_count_half_pixels_by_half() -> None:
    column = torch.zeros(1, 6, 1)
    column[0, 1] = 6
    planes = Planes(column, 0, 6, (1, 1), 1, "bilinear", np.random.RandomState(0))
    # four means, over [0, 1.5), [1.5, 3), …: half of pixel 1 lies in the first, half in the second
    ends = resolution(planes, 1.5)[0, [0, -1], 0]
    torch.testing.assert_close(ends, torch.tensor([2.0, 0.0]))


def test_motion_takes_the_lines_of_k_space_from_shifted_copies() -> None:
    rng, lines = random_state(0, "motion", "a"), np.arange(40)
    starts = np.sort(rng.uniform(0, 40, 6))
    places = rng.uniform(-8, 8, (7, 2)) / (1.5, 2.0)  # mm to pixels
    run = (lines[:, None] >= starts).sum(1)  # which stretch of the acquisition reads a line
    expected = np.zeros(SHAPE)
    for k in range(SHAPE[2]):
        spectrum = np.fft.fft2(body("mri")[0, :, :, k].numpy())
        mixed = np.zeros_like(spectrum)
        for number, place in enumerate(places):
            copy = ndimage.fourier_shift(spectrum, place - places[run[20]])  # line 20 is the centre
            own = np.fft.ifftshift(run == number)
            mixed[:, own] = copy[:, own]
        expected[..., k] = np.abs(np.fft.ifft2(mixed))
    np.testing.assert_allclose(corrupted("motion", 5)[0], expected, atol=0.01)


def test_gibbs_ringing_agrees_with_a_sharp_end_of_k_space() -> None:
    plane = body("mri").numpy()[0, ..., 5].astype(np.float64)
    spectrum = np.fft.fftshift(np.fft.fft2(plane))
    x, y = np.indices(plane.shape)
    radius = np.hypot(x - (SHAPE[0] - 1) / 2, y - (SHAPE[1] - 1) / 2)
    spectrum[radius > (1 - 0.6) * max(SHAPE[:2]) / np.sqrt(2)] = 0
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum)).real)
    found = corrupted("gibbs_ringing", 3).numpy()[0, ..., 5]
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_contrast_is_a_gamma_curve_within_the_robust_range_and_keeps_what_is_beyond() -> None:
    volume = body("oct")
    volume[0, 0, 0, 0] = 9000  # a hot pixel does not set the scale
    values = volume.numpy()
    image = corrupted("contrast", 5, "oct", volume).numpy()
    assert image[0, 0, 0, 0] == 9000
    low, high = np.percentile(values, [1, 99])
    core = (values > low) & (values < high)
    share, found = (values[core] - low) / (high - low), (image[core] - low) / (high - low)
    assert min(np.abs(found - share**gamma).max() for gamma in (2.7, 1 / 2.7)) < 1e-3


@pytest.mark.parametrize("name", [name for name in IN_MRI if name != "rotation"])
def test_background_that_was_masked_stays_masked(name: str) -> None:
    found = corrupted(name, 5, volume=body("mri", air=0.0))
    assert not found[0][torch.from_numpy(~INSIDE)].any()


def test_noise_of_the_air_is_corrupted_as_well() -> None:
    air = torch.from_numpy(~INSIDE)
    for name in ("rician_noise", "motion", "blur"):
        assert corrupted(name, 5)[0][air].mean() > 1.5 * body("mri")[0][air].mean()


@pytest.mark.parametrize("name", IN_MRI)
def test_slices_may_run_along_any_axis(name: str) -> None:
    first = replace(MODALITY["mri"], slice_axis=0)
    values = body("mri").as_tensor().movedim(3, 1).contiguous()
    turned = MetaTensor(values, affine=torch.from_numpy(AFFINE[:, [2, 0, 1, 3]]))
    image = StudyCorruptor(turned, modality=first, case="a")(CORRUPTIONS[name], 3)
    # the foreground is found slice by slice, so the robust range may differ by a grey
    found = image.as_tensor().movedim(1, 3)
    torch.testing.assert_close(found, corrupted(name, 3), rtol=2e-2, atol=4.0)


def test_what_makes_sense_in_a_modality() -> None:
    names = {recipe: set(corruptions_for(modality)) for recipe, modality in MODALITY.items()}
    assert {"motion", "bias_field", "gibbs_ringing", "rician_noise"} <= names["mri"]
    assert not {"motion", "bias_field", "rician_noise"} & (names["ct"] | names["oct"])
    assert "hu_shift" in names["ct"] - names["mri"] - names["oct"]
    for common in ("blur", "contrast", "resolution", "rotation"):
        assert all(common in own for own in names.values())


def test_study_without_foreground_is_refused_by_name() -> None:
    air = np.full(SHAPE, -1000.0)
    air[0, 0, 0] = -999
    with pytest.raises(VolumeError, match="case7 has no foreground"):
        corruptor(volume_of(air), "ct", case="case7")
