"""Normalisation: the contract of the output, robustness, and the way back to source units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from scipy import ndimage

from mcmiad_monai.transforms import (
    FOREGROUND_FLOOR,
    CanonicalOrientation,
    NormalizeCT,
    NormalizeMRI,
    NormalizeOCT,
    VolumeError,
    load_volume,
    normalizer,
    preprocessing,
)
from mcmiad_monai.transforms.foreground import ct_foreground, fill_holes, mri_foreground

SHAPE = (80, 96, 12)


def _ball(radius: float) -> np.ndarray:
    x, y, _ = np.indices(SHAPE)
    return np.hypot((x - 40) / 0.85, y - 48) < radius


HEAD, INNER, BRAIN, VENTRICLE = _ball(40), _ball(34), _ball(31), _ball(6)


def _head(*, skull: float = 1.0, noise: float = 3.0) -> np.ndarray:
    """Rician air, scalp, dark bone, brain and dark ventricles."""
    rng = np.random.default_rng(0)
    clean = np.zeros(SHAPE)
    clean[HEAD] = 160 * skull
    clean[INNER] = 25
    clean[BRAIN] = 100 + 12 * rng.normal(size=int(BRAIN.sum()))
    clean[VENTRICLE] = 20
    return np.hypot(clean + noise * rng.normal(size=SHAPE), noise * rng.normal(size=SHAPE))


def _meta(values: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values.astype("f4"))[None], affine=torch.eye(4).double())


CASES = {
    "mri head": ("mri", _head()),
    "mri noiseless air": ("mri", _head(noise=0)),
    "mri shifted": ("mri", _head() - 500),
    "mri no air": ("mri", np.random.default_rng(0).normal(300, 40, SHAPE)),
    "mri one slice": ("mri", _head()[:, :, 5:6]),
    "mri tiny": ("mri", (np.indices((7, 5, 3)).sum(0) % 2).astype(float)),
    "mri constant": ("mri", np.full((7, 5, 3), 4.0)),
    "ct": ("ct", np.where(HEAD, 40 + _head(), -1000.0)),
    "oct": ("oct", _head()),
    "oct constant": ("oct", np.full((7, 5, 1), 4.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_output_is_zero_outside_and_within_floor_and_one_inside(case: str) -> None:
    recipe, values = CASES[case]
    volume = _meta(values)
    out = normalizer(recipe)(volume)
    assert out.shape == volume.shape
    assert out.dtype == torch.float32
    inside = out[out > 0]
    assert len(inside) > 0
    assert inside.min() >= np.float32(FOREGROUND_FLOOR)
    assert inside.max() <= 1
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("case", CASES)
def test_inverse_restores_source_units_and_inputs_are_left_alone(case: str) -> None:
    recipe, values = CASES[case]
    volume, transform = _meta(values), normalizer(recipe)
    before, keys = volume.as_tensor().clone(), set(volume.meta)
    out = transform(volume)
    assert torch.equal(volume.as_tensor(), before)
    assert set(volume.meta) == keys
    assert out.applied_operations == []
    assert torch.equal(out.affine, volume.affine)
    back = transform.inverse(out)
    kept = (out > FOREGROUND_FLOOR * 1.001) & (out < 1)  # nothing was clipped here
    span = float(volume.max() - volume.min()) or 1.0
    assert torch.allclose(back[kept], volume[kept], atol=1e-5 * span + 1e-4)
    assert "intensity" not in back.meta
    assert type(out.meta["intensity"]) is dict


@pytest.mark.parametrize("gain", [3.0, 6.0])
def test_bright_skull_hardly_moves_the_brain(gain: float) -> None:
    usual = NormalizeMRI()(_meta(_head()))[0].numpy()
    bright = NormalizeMRI()(_meta(_head(skull=gain)))[0].numpy()
    change = np.abs(bright - usual)[BRAIN].mean() / usual[BRAIN].mean()
    assert change < 0.03
    np.testing.assert_array_equal(bright > 0, usual > 0)


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("skull", [1.0, 4.0])
def test_mri_foreground_is_the_head_with_its_dark_parts(noise: float, skull: float) -> None:
    found = mri_foreground(_head(skull=skull, noise=noise).astype("f4"))
    dice = 2 * (found & HEAD).sum() / (found.sum() + HEAD.sum())
    assert dice > 0.98
    assert found[VENTRICLE].all()


@pytest.mark.parametrize("outside", [0.0, -3.0])
def test_standardised_brain_keeps_its_negative_voxels(outside: float) -> None:
    values = np.full(SHAPE, outside, dtype="f4")
    values[BRAIN] = np.random.default_rng(0).normal(0, 1, int(BRAIN.sum())).clip(-2.9, 3)
    np.testing.assert_array_equal(mri_foreground(values), BRAIN)


def test_volume_without_air_is_foreground_as_a_whole() -> None:
    values = np.random.default_rng(0).normal(300, 40, SHAPE).astype("f4")
    assert mri_foreground(values).all()


def test_median_of_the_brain_lies_at_two_fifths_and_lesions_above() -> None:
    values = _head()
    lesion = _ball(14) & ~_ball(11)
    values[lesion] = 190
    out = NormalizeMRI()(_meta(values))[0].numpy()
    assert np.median(out[BRAIN & ~lesion]) == pytest.approx(0.4, abs=0.03)
    assert 0.7 < out[lesion].mean() < 1


def test_intensity_scale_of_the_scanner_does_not_matter() -> None:
    values = _head()
    one, other = NormalizeMRI()(_meta(values)), NormalizeMRI()(_meta(values * 17.3))
    assert torch.allclose(one.as_tensor(), other.as_tensor(), atol=2e-3)


def test_hole_filling_agrees_with_scipy_slice_by_slice() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(30, 40, 5)), (2, 2, 0)) > 0
    for air in (((0, 0),) * 3, ((3, 0), (0, 7), (0, 2)), ((1, 1), (5, 6), (0, 0))):
        padded = np.pad(mask, air)
        slices = [ndimage.binary_fill_holes(padded[..., k]) for k in range(padded.shape[2])]
        np.testing.assert_array_equal(fill_holes(padded), np.stack(slices, axis=2))
    assert not fill_holes(np.zeros((4, 5, 6), dtype=bool)).any()


def test_ct_window_is_linear_between_its_ends() -> None:
    values = np.full(SHAPE, -1000.0)
    values[HEAD] = np.linspace(-400, 500, int(HEAD.sum()))
    out = NormalizeCT()(_meta(values))[0].numpy()
    share = ((values - -200) / 450).clip(0, 1)
    expected = FOREGROUND_FLOOR + (1 - FOREGROUND_FLOOR) * share
    inside = out > 0
    np.testing.assert_allclose(out[inside], expected[inside], atol=1e-6)


def test_ct_body_has_its_lungs_and_not_its_table() -> None:
    values = np.full(SHAPE, -1000.0, dtype="f4")
    values[INNER] = 30
    lung = _ball(10)
    values[lung] = -850
    values[:, 90:92] = 100
    body = ct_foreground(values)
    assert body[lung].all()
    assert not body[:, 90:92].any()
    assert (body & INNER).sum() / INNER.sum() > 0.99


def test_air_alone_is_refused() -> None:
    values = np.random.default_rng(0).normal(-1000, 10, SHAPE)
    with pytest.raises(VolumeError, match=r"no foreground.*Hounsfield"):
        NormalizeCT()(_meta(values))


def test_windowed_ct_picture_keeps_its_range(tmp_path: Path) -> None:
    grey = np.zeros((40, 50), dtype="u1")
    grey[10:30, 10:40] = np.random.default_rng(0).integers(1, 256, (20, 30))
    Image.fromarray(grey).save(tmp_path / "p.png")
    out = preprocessing("liver_ct")({"image": tmp_path / "p.png"})["image"][0, :, :, 0].numpy()
    np.testing.assert_array_equal(out > 0, grey.T > 0)
    expected = FOREGROUND_FLOOR + (1 - FOREGROUND_FLOOR) * grey.T / 255.0
    np.testing.assert_allclose(out[out > 0], expected[out > 0], atol=1e-6)


def test_oct_is_foreground_everywhere() -> None:
    assert (NormalizeOCT()(_meta(_head())) > 0).all()


def test_what_cannot_be_normalised_or_restored_is_refused() -> None:
    with pytest.raises(ValueError, match="'pet' is not known"):
        normalizer("pet")
    with pytest.raises(ValueError, match=r"\(1, X, Y, Z\)"):
        NormalizeMRI()(MetaTensor(torch.rand(2, 4, 4, 4)))
    with pytest.raises(ValueError, match="no normalisation parameters"):
        NormalizeMRI().inverse(_meta(_head()))


def test_bright_skull_of_real_flair_hardly_moves_the_brain(shared: Path) -> None:
    folders = sorted((shared / "data" / "brain_flair_lgg").iterdir())
    for folder in folders[:60:20]:
        volume = CanonicalOrientation()(load_volume(folder / "flair.nii.gz"))
        usual = NormalizeMRI()(volume)
        inside = usual[0].numpy() > 0
        depth = np.stack([ndimage.distance_transform_edt(s) for s in inside.T]).T  # in the slice
        width = np.sqrt(inside.any(axis=2).sum())
        rim, brain = inside & (depth < 0.08 * width), depth > 0.13 * width
        bright = volume.clone()
        bright[0][torch.from_numpy(rim)] *= 3
        changed = NormalizeMRI()(bright)[0].numpy()
        before = usual[0].numpy()
        assert np.abs(changed - before)[brain].mean() < 0.02 * before[brain].mean()
        assert np.median(before[brain]) == pytest.approx(0.4, abs=0.05)
