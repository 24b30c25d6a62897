from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mcmiad_monai.data.phantom import make_phantom
from mcmiad_monai.figures import montage
from mcmiad_monai.overlay import OverlayError, overlay_rows


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SRP"])
def test_heat_and_lesion_are_shown_at_the_same_place_whatever_the_axes(
    tmp_path: Path, codes: str
) -> None:
    phantom = make_phantom(3, lesion="mass", shape=(40, 48, 10), orientation=codes)
    image = write(tmp_path / "i.nii.gz", phantom.image, phantom.affine)
    mask = write(tmp_path / "m.nii.gz", phantom.mask, phantom.affine)
    heat = write(tmp_path / "h.nii.gz", phantom.mask * np.float32(1.7), phantom.affine)
    (row,) = overlay_rows(image, heat, mask=mask, title="one")
    assert row.image.shape == (40, 48, 10)
    assert row.mask is not None
    np.testing.assert_array_equal(row.heatmap > 1, row.mask > 0)
    # the slice with the largest lesion, and spacing that follows the axes
    assert row.index == int(row.mask.sum((0, 1)).argmax())
    assert row.zooms[2] > 2 * row.zooms[0]
    # the same person in canonical axes: nothing is mirrored
    upright = make_phantom(3, lesion="mass", shape=(40, 48, 10), orientation="LPS")
    np.testing.assert_array_equal(row.image, upright.image)
    picture = montage([row], tmp_path / "m.png")
    assert picture.stat().st_size > 10_000


def test_study_without_lesion_shows_the_hottest_slices(tmp_path: Path) -> None:
    phantom = make_phantom(0, shape=(24, 28, 8), orientation="LPS")
    heat = np.zeros(phantom.image.shape, np.float32)
    heat[5, 5, 1], heat[5, 5, 6] = 3, 2
    image = write(tmp_path / "i.nii.gz", phantom.image, phantom.affine)
    rows = overlay_rows(image, write(tmp_path / "h.nii.gz", heat, phantom.affine), count=2)
    assert [row.index for row in rows] == [1, 6]
    assert rows[0].title == "i.nii.gz"


def test_heatmap_of_another_grid_is_refused(tmp_path: Path) -> None:
    phantom = make_phantom(0, shape=(24, 28, 8))
    image = write(tmp_path / "i.nii.gz", phantom.image, phantom.affine)
    moved = phantom.affine.copy()
    moved[0, 3] += 10
    heat = write(tmp_path / "h.nii.gz", phantom.image.astype(np.float32), moved)
    with pytest.raises(OverlayError, match="does not lie on the grid"):
        overlay_rows(image, heat)
