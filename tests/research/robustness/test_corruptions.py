"""Corruptions: unchanged at 0, repeatable, graded, in place, and what each does to an image."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scipy.stats import norm
from torch import Tensor

from mcmiad_monai.research.robustness.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Corruptd,
    StudyCorruptor,
    corruptions_for,
    get_corruption,
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
MODALITY = {"mri": "brain_mri", "ct": "liver_ct", "oct": "retina_oct"}
PAIRS = [(recipe, c.name) for c in CORRUPTIONS.values() for recipe in c.recipes]


def body(recipe: str, *, scale: float = 1.0, meta: dict[str, object] | None = None) -> MetaTensor:
    """An ellipse with texture in every slice, in the units of the modality."""
    rng = np.random.default_rng(3)
    x, y, _ = np.indices(SHAPE)
    inside = ((x - 23.5) / 20) ** 2 + ((y - 19.5) / 16) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), (2, 2, 1))
    texture /= texture.std()
    values = {
        "mri": np.where(inside, 300 + 60 * texture, 4 * rng.random(SHAPE)),
        "ct": np.where(inside, 50 + 40 * texture, -1000.0),
        "oct": 90 + 30 * texture + 60 * inside,
    }[recipe]
    tensor = torch.from_numpy(np.maximum(values, -1000 if recipe == "ct" else 0) * scale).float()
    return MetaTensor(tensor[None], affine=torch.from_numpy(AFFINE), meta=meta)


def square() -> MetaTensor:
    """A lesion off the middle."""
    mask = torch.zeros(1, *SHAPE)
    mask[:, 30:36, 12:18, 2:4] = 1
    return MetaTensor(mask, affine=torch.from_numpy(AFFINE))


def corrupted(name: str, severity: int, recipe: str = "mri", *, case: str = "a") -> Tensor:
    corrupt = StudyCorruptor(body(recipe), modality=MODALITY[recipe], case=case)
    return corrupt(CORRUPTIONS[name], severity)[0].as_tensor()


@pytest.mark.parametrize(("recipe", "name"), PAIRS)
def test_severity_zero_is_the_very_study(recipe: str, name: str) -> None:
    volume, mask = body(recipe), square()
    before = volume.clone()
    corrupt = StudyCorruptor(volume, modality=MODALITY[recipe], case="a", mask=mask)
    image, label = corrupt(CORRUPTIONS[name], 0)
    assert torch.equal(image, before)
    assert label is mask


@pytest.mark.parametrize(("recipe", "name"), PAIRS)
def test_geometry_stays_and_the_input_is_left_alone(recipe: str, name: str) -> None:
    volume = body(recipe, meta={"case": "a", "filename_or_obj": "a.nii"})
    before = volume.as_tensor().clone()
    corrupt = StudyCorruptor(volume, modality=MODALITY[recipe], case="a", mask=square())
    image, label = corrupt(CORRUPTIONS[name], 3)
    assert image.shape == volume.shape
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert label is not None
    np.testing.assert_array_equal(label.affine, AFFINE)
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


@pytest.mark.parametrize("name", ["rician_noise", "bias_field", "motion", "rotation", "contrast"])
def test_same_seed_and_case_give_the_same_image(name: str) -> None:
    assert torch.equal(corrupted(name, 2), corrupted(name, 2))


@pytest.mark.parametrize("name", ["rician_noise", "bias_field", "motion"])
def test_another_case_or_seed_gives_another_image(name: str) -> None:
    other = StudyCorruptor(body("mri"), modality="brain_mri", case="a", seed=1)
    assert not torch.equal(corrupted(name, 2), corrupted(name, 2, case="b"))
    assert not torch.equal(corrupted(name, 2), other(CORRUPTIONS[name], 2)[0].as_tensor())


def test_order_of_conditions_does_not_matter() -> None:
    corrupt = StudyCorruptor(body("mri"), modality="brain_mri", case="a")
    for name in ("motion", "bias_field", "rician_noise"):
        found = corrupt(CORRUPTIONS[name], 2)[0].as_tensor()
        assert torch.equal(found, corrupted(name, 2))


@pytest.mark.parametrize("name", [c.name for c in corruptions_for("brain_mri")])
def test_strength_follows_the_scale_of_the_volume(name: str) -> None:
    large = StudyCorruptor(body("mri", scale=50.0), modality="brain_mri", case="a")
    found = large(CORRUPTIONS[name], 3)[0].as_tensor() / 50
    torch.testing.assert_close(found, corrupted(name, 3), rtol=1e-3, atol=0.2)


def test_noise_has_the_stated_standard_deviation() -> None:
    volume = body("ct")
    corrupt = StudyCorruptor(volume, modality="liver_ct", case="a")
    change = (corrupt(CORRUPTIONS["gaussian_noise"], 3)[0] - volume).as_tensor()
    tissue = volume.as_tensor()[volume.as_tensor() > -500].numpy()
    low, high = np.percentile(tissue, (1, 99))
    inside = change[volume.as_tensor() > -500]
    assert float(inside.std()) == pytest.approx(0.07 * (high - low), rel=0.03)
    assert abs(float(inside.mean())) < 0.01 * (high - low)
    # air that was masked to one value stays, or noise would become foreground
    assert not change[volume.as_tensor() < -500].any()


def test_rician_noise_lifts_the_background_by_its_mean() -> None:
    volume = body("mri")
    values = volume.as_tensor()
    corrupt = StudyCorruptor(volume, modality="brain_mri", case="a")
    change = corrupt(CORRUPTIONS["rician_noise"], 5)[0].as_tensor()
    low, high = np.percentile(values[values > 50].numpy(), (1, 99))
    outside = change[values < 5]
    # Rayleigh: mean σ √(π / 2); the faint signal there adds little
    assert float(outside.mean()) == pytest.approx(
        0.16 * (high - low) * math.sqrt(math.pi / 2), rel=0.03
    )
    assert float(change.min()) >= 0


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shift_is_of_the_stated_hounsfield_units(severity: int) -> None:
    volume = body("ct").as_tensor()
    change = (corrupted("hu_shift", severity, "ct") - volume)[volume > -500]
    expected = CORRUPTIONS["hu_shift"].level(severity)
    torch.testing.assert_close(change.abs(), torch.full_like(change, expected), atol=1e-3, rtol=0)


def test_shift_of_a_picture_is_that_of_its_window() -> None:
    grey = (body("ct").as_tensor().clamp(-200, 250) + 200) / 450 * 255
    picture = MetaTensor(grey, affine=torch.from_numpy(AFFINE), meta={"picture": True})
    found = StudyCorruptor(picture, modality="liver_ct", case="a")(CORRUPTIONS["hu_shift"], 4)[0]
    middle = (grey > 60) & (grey < 195)
    expected = torch.full_like(grey[middle], 60 / 450 * 255)
    torch.testing.assert_close(
        (found.as_tensor() - grey)[middle].abs(), expected, atol=1e-3, rtol=0
    )
    assert float(found.max()) <= 255
    assert float(found.min()) >= 0


@pytest.mark.parametrize("severity", [2, 5])
def test_lesion_turns_with_the_image(severity: int) -> None:
    lesion = square()
    volume = body("mri")
    bright = MetaTensor(
        volume.as_tensor() * (1 - lesion.as_tensor()) + 5000 * lesion.as_tensor(),
        affine=torch.from_numpy(AFFINE),
    )
    corrupt = StudyCorruptor(bright, modality="brain_mri", case="a", mask=lesion)
    image, mask = corrupt(CORRUPTIONS["rotation"], severity)
    assert mask is not None
    assert set(mask.unique().tolist()) == {0, 1}
    hot = (image.as_tensor() > 2500).float()
    found = mask.as_tensor()
    assert float(2 * (hot * found).sum() / (hot.sum() + found.sum())) > 0.9
    # in mm about the middle of the slice, the lesion keeps its distance and goes by the angle
    middle = (np.array(SHAPE) - 1) / 2
    before, after = (
        (np.argwhere(m[0].numpy() > 0).mean(0) - middle)[:2] * (1.5, 2.0)
        for m in (lesion.as_tensor(), found)
    )
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), abs=0.5)
    turned = np.rad2deg(np.arctan2(*after[::-1]) - np.arctan2(*before[::-1]))
    assert abs(turned) == pytest.approx(CORRUPTIONS["rotation"].level(severity), abs=2)


@pytest.mark.parametrize("name", [c.name for c in corruptions_for("brain_mri")])
def test_lesion_stays_where_the_anatomy_stays(name: str) -> None:
    mask = square()
    corrupt = StudyCorruptor(body("mri"), modality="brain_mri", case="a", mask=mask)
    label = corrupt(CORRUPTIONS[name], 5)[1]
    assert label is not None
    assert torch.equal(label, mask) == (name != "rotation")


def test_blur_is_a_gaussian_in_millimetres() -> None:
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
    corrupt = StudyCorruptor(body("mri"), modality="brain_mri", case="a")
    found = corrupt(CORRUPTIONS["resolution"], 2)[0].as_tensor()[0]  # twice the pixel size
    clean = body("mri").as_tensor()[0]
    means = clean.reshape(24, 2, 20, 2, 6).mean((1, 3)).numpy()  # (24, 20, 6)
    # pixels stand a quarter of a block to either side of the block's centre
    x, y = np.meshgrid(np.arange(48) / 2 - 0.25, np.arange(40) / 2 - 0.25, indexing="ij")
    for k in range(6):
        expected = ndimage.map_coordinates(means[..., k], [x, y], order=1, mode="nearest")
        np.testing.assert_allclose(found[..., k], expected, atol=1e-2)


def test_pixels_half_as_large_again_count_half_pixels_by_half() -> None:
    column = torch.zeros(1, 6, 1)
    column[0, 1] = 6
    planes = Planes(column, 0, 6, (1, 1), 1, np.random.RandomState(0))
    # four means, over [0, 1.5), [1.5, 3), …: half of pixel 1 lies in the first, half in the second
    ends = resolution(planes, 1.5)[0, [0, -1], 0]
    torch.testing.assert_close(ends, torch.tensor([2.0, 0.0]))


def test_thick_slices_leave_a_single_slice_alone() -> None:
    flat = MetaTensor(body("mri").as_tensor()[..., :1], affine=torch.from_numpy(AFFINE))
    corrupt = StudyCorruptor(flat, modality="brain_mri", case="a")
    assert not corrupt.applies(CORRUPTIONS["thick_slices"])
    assert corrupt.applies(CORRUPTIONS["blur"])
    assert StudyCorruptor(body("mri"), modality="brain_mri", case="a").applies(
        CORRUPTIONS["thick_slices"]
    )


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


def test_motion_keeps_the_energy_of_every_slice() -> None:
    clean, moved = body("mri").as_tensor()[0].double(), corrupted("motion", 5)[0].double()
    energies = [v.square().sum((0, 1)) for v in (moved, clean)]
    torch.testing.assert_close(*energies, rtol=1e-4, atol=0)  # phases alone change: Parseval


def test_gibbs_ringing_leaves_no_signal_beyond_the_edge_of_k_space() -> None:
    def share_at_the_corner(volume: Tensor) -> float:
        spectrum = torch.fft.fftshift(torch.fft.fft2(volume[0].movedim(2, 0)), dim=(-2, -1)).abs()
        corner = spectrum[:, :5, :5].square().sum()
        return float(corner / spectrum.square().sum())

    clean = body("mri").as_tensor()
    assert share_at_the_corner(corrupted("gibbs_ringing", 5)) < 0.2 * share_at_the_corner(clean)


def test_what_makes_sense_in_a_modality() -> None:
    names = {m: {c.name for c in corruptions_for(m)} for m in MODALITY.values()}
    assert {"motion", "bias_field", "gibbs_ringing", "rician_noise"} <= names["brain_mri"]
    assert "hu_shift" in names["liver_ct"]
    for other in ("brain_mri", "retina_oct"):
        assert "hu_shift" not in names[other]
    for other in ("liver_ct", "retina_oct"):
        assert not {"motion", "bias_field", "rician_noise"} & names[other]
    for common in ("blur", "contrast", "resolution", "rotation"):
        assert all(common in own for own in names.values())


def test_unknown_names_and_severities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'hu_shift' is not one of brain_mri; choose from .*blur"):
        get_corruption("hu_shift", "brain_mri")
    corrupt = StudyCorruptor(body("mri"), modality="brain_mri", case="a")
    with pytest.raises(ValueError, match="severity 6 is not known"):
        corrupt(CORRUPTIONS["blur"], 6)


def test_study_without_foreground_is_refused_by_name() -> None:
    air = MetaTensor(torch.full((1, *SHAPE), -1000.0), affine=torch.from_numpy(AFFINE))
    air[0, 0, 0, 0] = -999
    with pytest.raises(VolumeError, match="case7 has no foreground"):
        StudyCorruptor(air, modality="liver_ct", case="case7")


def test_transform_does_the_same_in_a_pipeline() -> None:
    transform = Corruptd(corruption="rotation", severity=4, modality="brain_mri", seed=5)
    found = transform({"case": "a", "image": body("mri"), "label": square()})
    corrupt = StudyCorruptor(body("mri"), modality="brain_mri", case="a", mask=square(), seed=5)
    image, label = corrupt(CORRUPTIONS["rotation"], 4)
    assert label is not None
    assert torch.equal(found["image"], image)
    assert torch.equal(found["label"], label)
