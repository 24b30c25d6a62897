"""Which voxels of a mask are lesion, and what is no mask."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from mcmiad_monai.transforms import VolumeError, load_mask

DRAWN = np.zeros((40, 44, 10), dtype=bool)
DRAWN[10:22, 14:30, 3:8] = True
#: Of one lesion each, a few voxels wide, as instance labels are.
INSTANCES = np.zeros(DRAWN.shape, dtype="i2")
INSTANCES[2:40:3, 2:44:3, 1:9:2] = np.arange(1, 13 * 14 * 4 + 1).reshape(13, 14, 4)[:13]
LABELS = np.where(DRAWN, 1, 0) + np.where(DRAWN & (np.arange(44)[:, None] > 20), 3, 0)


def _read(folder: Path, values: np.ndarray, slope: float | None = None) -> np.ndarray:
    image = nib.Nifti1Image(values, np.eye(4))
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, folder / "mask.nii.gz")
    return load_mask(folder / "mask.nii.gz")[0].numpy() > 0


@pytest.mark.parametrize(
    "values",
    [
        DRAWN.astype("u1"),
        (255 * DRAWN).astype("u1"),
        (0.25 * DRAWN).astype("f4"),
        LABELS.astype("u1"),
        LABELS.astype("f4"),
        (LABELS * 0.9999).astype("f4"),
        np.where(LABELS == 1, 57, LABELS * 0 + 255 * (LABELS == 4)).astype("u1"),
        INSTANCES,
    ],
    ids=["0/1", "0/255", "0/quarter", "labels", "float labels", "scaled", "greys", "instances"],
)
def test_any_label_is_lesion(tmp_path: Path, values: np.ndarray) -> None:
    np.testing.assert_array_equal(_read(tmp_path, values), values > 0)


@pytest.mark.parametrize("white", [1, 0.4, 255])
def test_soft_mask_is_lesion_from_half_of_its_maximum(tmp_path: Path, white: float) -> None:
    soft = white * gaussian_filter(DRAWN.astype("f4"), 1.5)
    soft[soft < 1e-4] = 0
    found = _read(tmp_path, soft)
    np.testing.assert_array_equal(found, soft >= soft.max() / 2)
    assert found.sum() == pytest.approx(DRAWN.sum(), rel=0.2)
    assert (soft > 0).sum() > 3 * DRAWN.sum()


def test_resampled_mask_keeps_its_size_also_where_splines_overshoot(tmp_path: Path) -> None:
    finer = zoom(DRAWN.astype("f4"), 1.5, order=3)
    assert finer.min() < 0
    assert finer.max() > 1
    assert _read(tmp_path, finer).sum() == pytest.approx(DRAWN.sum() * 1.5**3, rel=0.1)


def test_picture_with_smooth_edges_is_lesion_from_half_of_white(tmp_path: Path) -> None:
    soft = np.rint(255 * np.clip(gaussian_filter(DRAWN[..., 5].astype("f4"), 1) * 1.05, 0, 1))
    assert soft.max() == 255
    Image.fromarray(soft.astype("u1").T).save(tmp_path / "mask.png")
    found = load_mask(tmp_path / "mask.png")[0, :, :, 0].numpy()
    np.testing.assert_array_equal(found, soft >= 128)


GREY = np.random.default_rng(0).integers(0, 2000, DRAWN.shape)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (GREY.astype("i2"), "grey values of an image"),
        ((GREY / 2000).astype("f4"), "grey values of an image"),
        ((GREY // 8).astype("u1"), "grey values of an image"),
        ((GREY - 1000).astype("i2"), "values from -1000 to 999"),
        (zoom(LABELS.astype("f4"), 1.5, order=1), "labels that were interpolated"),
        (np.where(DRAWN, np.inf, 0).astype("f4"), "NaN or infinite"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, values: np.ndarray, found: str) -> None:
    with pytest.raises(VolumeError, match=found) as caught:
        _read(tmp_path, values)
    assert "mask.nii.gz" in str(caught.value)
