"""Images as the paper has them: colours kept, nothing normalised, every pixel in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from mcmiad_monai.inference.inferer import SliceHeatmapInferer
from mcmiad_monai.transforms import normalizer, preprocessing, select_slices, slice_batch

RAW: dict[str, Any] = {
    "keep_colours": True,
    "normalize_images": False,
    "mask_background": False,
}


@pytest.fixture
def picture(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A colour picture (H, W, 3) whose left half is black."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    rgb[:, :24] = 0
    Image.fromarray(rgb).save(tmp_path / "bone.png")
    return tmp_path / "bone.png", rgb


def test_colours_arrive_as_they_are_stored(picture: tuple[Path, np.ndarray]) -> None:
    path, rgb = picture
    image = preprocessing("brain_mri", **RAW)({"image": path})["image"]
    assert image.shape == (3, 48, 40, 1)
    np.testing.assert_allclose(image[..., 0].numpy(), rgb.T / 255, atol=1e-6)
    assert (image > 0).all()
    (only,) = slice_batch(image, [0], size=40)  # (3, rows, columns)
    assert only.shape == (3, 40, 40)
    assert select_slices(image, axis=2) == [0]


def test_grey_picture_has_its_values_three_times(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    image = preprocessing("retina_oct", **RAW)({"image": tmp_path / "grey.png"})["image"]
    for channel in image:
        np.testing.assert_allclose(channel[..., 0].numpy(), grey.T / 255, atol=1e-6)


def test_heat_of_colours_is_one_channel_over_all_pixels(picture: tuple[Path, np.ndarray]) -> None:
    image = preprocessing("brain_mri", **RAW)({"image": picture[0]})["image"]

    def network(images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1] == 3
        return torch.ones_like(images[:, :1])

    heat = SliceHeatmapInferer(axis=2)(image[None], network)
    assert heat.shape == (1, 1, 48, 40, 1)
    np.testing.assert_allclose(heat.numpy(), 1, atol=1e-6)
    np.testing.assert_allclose(heat.affine, image.affine)


@pytest.mark.parametrize("recipe", ["mri", "ct", "oct"])
def test_background_alone_keeps_the_foreground_as_it_was(recipe: str) -> None:
    values = torch.full((1, 32, 32, 4), -1000.0 if recipe == "ct" else 0.0)
    values[:, 8:24, 8:24] = torch.rand(1, 16, 16, 4, generator=torch.Generator().manual_seed(0))
    values[:, 8:24, 8:24] = values[:, 8:24, 8:24] * 100 + 20
    volume = MetaTensor(values)
    masked = normalizer(recipe)(volume)
    whole = normalizer(recipe, mask_background=False)(volume)
    assert (whole > 0).all()
    torch.testing.assert_close(whole[masked > 0], masked[masked > 0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("recipe", "low", "high"), [("ct", -200.0, 250.0), ("mri", 0.0, 120.0), ("oct", 0.0, 120.0)]
)
def test_volumes_that_are_not_normalised_have_one_linear_scale(
    recipe: str, low: float, high: float
) -> None:
    values = torch.linspace(0, 120, 32 * 32 * 4).reshape(1, 32, 32, 4)
    plain = normalizer(recipe, normalize_images=False, mask_background=False)
    out = plain(MetaTensor(values))
    torch.testing.assert_close(
        out.as_tensor(), ((values - low) / (high - low)).clamp(2.0**-24, 1), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(plain.inverse(out).as_tensor(), values, rtol=0, atol=1e-3)
