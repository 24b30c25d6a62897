"""Heatmaps and masks as files: exact values, true geometry, upright, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from monai.transforms import Compose, Invertd
from oblique import OBLIQUE
from PIL import Image

from mcmiad_monai.data.studies import StudyDataset
from mcmiad_monai.inference.blend import blend
from mcmiad_monai.inference.outputs import AnomalyMaskd, KeepSliceScoresd, SaveStudyd
from mcmiad_monai.inference.writers import picture_of, write_nifti, write_pictures
from mcmiad_monai.transforms import as_heatmap, preprocessing
from mcmiad_monai.transforms.volume import load_heatmap

HEIGHT, WIDTH = 24, 40


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 3, shape).astype(np.float32)


LARGE = noise(HEIGHT, WIDTH).astype(np.float64) * 12345.678


@pytest.mark.parametrize("shape", [(5, 6, 1), (1, 6, 4), (5, 1, 1), (1, 1, 1)])
def test_axes_of_length_one_are_kept(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    write_nifti(tmp_path / "a.nii.gz", noise(*shape), OBLIQUE)
    assert nib.load(tmp_path / "a.nii.gz").shape == shape
    assert load_heatmap(tmp_path / "a.nii.gz").shape == (1, *shape)


@pytest.mark.parametrize("shape", [(1, 5, 6, 4), (5, 6)])
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"is no heatmap or mask; \(X, Y, Z\)"):
        write_nifti(tmp_path / "a.nii.gz", noise(*shape), OBLIQUE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 8, 9, 2), (2, 8, 9, 1), (8, 9, 1), (1, 1, 8, 9)])
def test_volume_is_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"is no picture \(1, W, H, 1\)"):
        picture_of(torch.zeros(shape))


def study(where: tuple[slice, slice]) -> dict[str, np.ndarray]:
    """A dim noisy picture whose heat is at one place, given as rows and columns."""
    image = np.random.default_rng(1).uniform(0.1, 0.5, (HEIGHT, WIDTH))
    heatmap = np.full((HEIGHT, WIDTH), 0.1, dtype=np.float32)
    heatmap[where] = 1.7
    return {"image": image, "heatmap": heatmap, "mask": (heatmap > 1).astype(np.uint8)}


CORNERS = {
    "top left": (slice(0, 6), slice(0, 9)),
    "top right": (slice(0, 6), slice(-9, None)),
    "bottom left": (slice(-6, None), slice(0, 9)),
    "bottom right": (slice(-6, None), slice(-9, None)),
}


@pytest.mark.parametrize("heatmap", [noise(HEIGHT, WIDTH) * 1.23, np.asfortranarray(LARGE)])
def test_heatmap_is_exact_in_a_float_tiff(tmp_path: Path, heatmap: np.ndarray) -> None:
    write_pictures(tmp_path / "p7", **{**study(CORNERS["top left"]), "heatmap": heatmap})
    with Image.open(tmp_path / "p7_heatmap.tiff") as picture:
        assert (picture.mode, picture.size) == ("F", (WIDTH, HEIGHT))
        np.testing.assert_array_equal(np.asarray(picture), heatmap.astype(np.float32))


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32])
def test_mask_and_overlay_are_upright_and_show_the_heat_alone(
    tmp_path: Path, corner: str, dtype: Any
) -> None:
    content = study(CORNERS[corner])
    write_pictures(tmp_path / "p7", **{**content, "mask": content["mask"].astype(dtype)})
    hot = np.zeros((HEIGHT, WIDTH), dtype=bool)
    hot[CORNERS[corner]] = True
    with Image.open(tmp_path / "p7_mask.png") as picture:
        assert (picture.mode, picture.size) == ("L", (WIDTH, HEIGHT))
        np.testing.assert_array_equal(np.asarray(picture), 255 * hot)
    with Image.open(tmp_path / "p7_overlay.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (WIDTH, HEIGHT))
        found = np.asarray(picture)
    grey = np.rint(content["image"] * 255)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal((found != grey).any(axis=2), hot)


def test_interrupted_picture_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "p7", **study(CORNERS["top left"]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def disk_full(_picture: Any, partial: Path) -> None:
        Path(partial).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_pictures(tmp_path / "p7", **study(CORNERS["top right"]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def picture_study(folder: Path, suffix: str) -> tuple[np.ndarray, dict[str, Any]]:
    """A wide picture through the transforms of inference, with heat in its upper right corner."""
    grey = np.random.default_rng(0).integers(40, 120, (20, 30)).astype("u1")
    path = folder / f"eye{suffix}"
    Image.fromarray(grey).save(path)
    grey = np.asarray(Image.open(path))  # JPEG changes it
    prepare = preprocessing("retina_oct")
    sample = StudyDataset([{"case": "eye.1", "image": str(path)}], prepare)[0]
    heat = torch.zeros(sample["image"].shape)  # (1, W, H, 1) in LPS, as a picture is shown
    heat[0, -8:, :5] = 1.5
    sample["pred"] = as_heatmap(heat, sample["image"])
    sample["pred"].meta["slice_scores"] = torch.tensor([1.25])
    home = Invertd("pred", prepare, orig_keys="image", nearest_interp=False, to_tensor=True)
    return grey, Compose([KeepSliceScoresd("pred"), home, AnomalyMaskd("pred")])(sample)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".bmp", ".jpg"])
def test_picture_comes_back_as_pictures_of_its_size_the_right_way_up(
    tmp_path: Path, suffix: str
) -> None:
    grey, sample = picture_study(tmp_path, suffix)
    done = SaveStudyd(output_dir=tmp_path / "out")(sample)
    stem = "eye.1/eye.1"
    assert sorted(path.name for path in (tmp_path / "out" / "eye.1").iterdir()) == [
        "eye.1_heatmap.tiff",
        "eye.1_mask.png",
        "eye.1_overlay.png",
        "eye.1_scores.json",
    ]
    heat, mask, overlay = (
        np.asarray(Image.open(tmp_path / "out" / f"{stem}_{name}"))
        for name in ("heatmap.tiff", "mask.png", "overlay.png")
    )
    expected = np.zeros(grey.shape, dtype=bool)
    expected[:5, -8:] = True  # rows from the top, columns from the left
    np.testing.assert_array_equal(heat, np.where(expected, np.float32(1.5), 0))
    np.testing.assert_array_equal(mask, np.where(expected, 255, 0))
    assert overlay.shape == (*grey.shape, 3)
    coloured = (overlay.max(axis=2).astype(int) - overlay.min(axis=2)) > 0
    assert coloured.any()
    assert not coloured[~expected].any()
    # outside the heat it is the normalised picture, in order of its grey values
    shown = overlay[..., 0][~expected].astype(float)
    assert np.corrcoef(shown, grey[~expected])[0, 1] > 0.99
    assert done["scores"]["modality"] == "retina_oct"
    assert [s["score"] for s in done["scores"]["slices"]] == [1.25]


def test_picture_is_written_as_nifti_if_pictures_are_not_wanted(tmp_path: Path) -> None:
    grey, sample = picture_study(tmp_path, ".png")
    SaveStudyd(output_dir=tmp_path / "out", pictures=False)(sample)
    written = nib.load(tmp_path / "out/eye.1/eye.1_heatmap.nii.gz")
    assert written.shape == (*grey.shape[::-1], 1)
    np.testing.assert_array_equal(written.affine, np.diag([-1, -1, 1, 1]))
    assert not list((tmp_path / "out").rglob("*.tiff"))


def test_heat_below_the_threshold_shines_through_and_grows() -> None:
    image = np.full((1, 5), 0.5)
    found = blend(image, np.array([[0.3, 0.5, 0.7, 0.9, 1.0]])).astype(int)
    change = np.abs(found - 128).sum(axis=2)[0]
    assert change[0] == 0
    assert (np.diff(change[[0, 1, 3]]) > 0).all()
    # half of the way from clear to solid: inferno at 0.35 of its range, mixed by hand
    share = 0.85 * (0.7 - 0.4) / (1 - 0.4)
    colour = np.array(colormaps["inferno"](0.7 / 2)[:3])
    expected = 255 * (0.5 * (1 - share) + colour * share)
    np.testing.assert_allclose(found[0, 2], expected, atol=0.51)


def test_line_is_drawn_around_what_is_anomalous_alone() -> None:
    heatmap = np.full((9, 11), 0.9)
    heatmap[2:7, 3:8] = 1.5
    found = blend(np.full((9, 11), 0.2), heatmap)
    white = (found == 255).all(axis=2)
    expected = np.zeros((9, 11), dtype=bool)
    expected[2:7, 3:8] = True
    expected[3:6, 4:7] = False
    np.testing.assert_array_equal(white, expected)
    # a pixel at the threshold does not exceed it
    assert not (blend(np.full((3, 3), 0.2), np.ones((3, 3))) == 255).all(axis=2).any()


def test_colours_end_at_the_scale_and_grey_values_at_black_and_white() -> None:
    heatmap = np.full((5, 5), 2.0)
    image = np.full((5, 5), 0.5)
    np.testing.assert_array_equal(blend(image, heatmap), blend(image, heatmap * 50))
    assert not np.array_equal(blend(image, heatmap), blend(image, heatmap, scale=4.0))
    cold = np.zeros((1, 2))
    assert blend(np.array([[-1.0, 7.0]]), cold)[..., 0].tolist() == [[0, 255]]
