"""An overlay shows heat and lesion where they are in the patient, or it refuses."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Invertd
from oblique import SPACING, oblique_affine
from PIL import Image

from mcmiad_monai.inference.overlay import OverlayError, overlay_rows
from mcmiad_monai.inference.writers import picture_of, write_nifti, write_pictures
from mcmiad_monai.transforms import as_heatmap, preprocessing

SHAPE = (12, 16, 10)
# where the lesion is on the canonical grid: to the patient's right, in front, below the middle
LESION = (slice(2, 4), slice(5, 8), slice(3, 4))
HOT = (8, 11, 6)  # the hottest voxel, elsewhere


def canonical() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, heatmap and mask on the canonical grid."""
    image = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    heat = np.full(SHAPE, 0.1, np.float32)
    heat[LESION], heat[HOT] = 2.0, 9.0
    heat[:, :, HOT[2]] += 3.0
    mask = np.zeros(SHAPE, np.uint8)
    mask[LESION] = 1
    return image, heat, mask


def write(folder: Path, orientation: str = "LPS") -> dict[str, Path]:
    """Write the three as a scanner would that stores its axes in another order."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(orientation)
    )
    stored = oblique_affine("LPS") @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    paths = {}
    for name, array in zip(("image", "heatmap", "mask"), canonical(), strict=True):
        paths[name] = folder / f"{name}.nii.gz"
        voxels = nib.orientations.apply_orientation(array, turn)
        nib.save(nib.Nifti1Image(voxels, stored), paths[name])
    return paths


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LPI", "PIR", "ASL", "RPI"])
def test_study_comes_out_canonical_however_it_is_stored(tmp_path: Path, orientation: str) -> None:
    paths = write(tmp_path, orientation)
    stored = nib.load(paths["image"])
    assert "".join(nib.aff2axcodes(stored.affine)) == orientation
    (row,) = overlay_rows(paths["image"], paths["heatmap"], mask=paths["mask"])
    image, heat, mask = canonical()
    np.testing.assert_array_equal(row.image, image)
    np.testing.assert_array_equal(row.heatmap, heat)
    np.testing.assert_array_equal(row.mask, mask)
    assert row.zooms == pytest.approx([SPACING[c] for c in "LPS"], abs=1e-5)
    assert row.axis == 2
    assert row.threshold == 1


def test_slice_is_that_of_the_largest_lesion_and_else_that_of_most_heat(tmp_path: Path) -> None:
    paths = write(tmp_path, "RPI")
    (row,) = overlay_rows(paths["image"], paths["heatmap"], mask=paths["mask"])
    assert row.index == LESION[2].start
    (row,) = overlay_rows(paths["image"], paths["heatmap"], title="patient 7")
    assert (row.mask, row.index, row.title) == (None, HOT[2], "patient 7")
    assert row.heatmap[HOT] == row.heatmap.max()
    affine = nib.load(paths["mask"]).affine
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine), paths["mask"])
    (row,) = overlay_rows(paths["image"], paths["heatmap"], mask=paths["mask"])
    assert row.mask is not None
    assert not row.mask.any()
    assert row.index == HOT[2]


def test_several_slices_are_rows_of_one_study(tmp_path: Path) -> None:
    paths = write(tmp_path)
    rows = overlay_rows(paths["image"], paths["heatmap"], mask=paths["mask"], count=3)
    indices = [row.index for row in rows]
    assert len(set(indices)) == 3
    assert indices == sorted(indices)
    assert LESION[2].start in indices
    assert {row.title for row in rows} == {"image.nii.gz"}


@pytest.mark.parametrize("name", ["heatmap", "mask"])
@pytest.mark.parametrize("change", ["shape", "shift", "flip", "orientation"])
def test_other_grid_is_refused_by_name(tmp_path: Path, name: str, change: str) -> None:
    paths = write(tmp_path)
    loaded = nib.load(paths[name])
    values, affine = np.asarray(loaded.dataobj), loaded.affine.copy()
    if change == "shape":
        values = values[:, :, :-1]
    elif change == "shift":
        affine[2, 3] += 3.5  # one slice
    elif change == "flip":
        affine[:, 0] *= -1
    else:
        (tmp_path / "other").mkdir()
        paths[name] = write(tmp_path / "other", "RAS")[name]
    if change != "orientation":
        nib.save(nib.Nifti1Image(values, affine), paths[name])
    with pytest.raises(OverlayError, match=rf"the {name} \(.*does not lie on the grid of") as error:
        overlay_rows(paths["image"], paths["heatmap"], mask=paths["mask"])
    assert str(paths["image"]) in str(error.value)


def test_rounding_of_an_affine_is_no_other_grid(tmp_path: Path) -> None:
    paths = write(tmp_path)
    heat = nib.load(paths["heatmap"])
    rounded = heat.affine.astype(np.float32) + 2e-5
    nib.save(nib.Nifti1Image(heat.get_fdata(), rounded), paths["heatmap"])
    assert overlay_rows(paths["image"], paths["heatmap"])


def write_picture(folder: Path) -> tuple[Path, Path]:
    """A picture with a bright patch, and the heatmap that inference writes of it."""
    grey = np.random.default_rng(0).integers(20, 60, (24, 30)).astype(np.uint8)
    grey[3:6, 20:25] = 250
    Image.fromarray(grey).save(folder / "p.png")
    prepare = preprocessing("retina_oct")
    data = prepare({"image": str(folder / "p.png")})
    data["image"].meta["case"] = "p"
    data["pred"] = as_heatmap(data["image"].as_tensor() * 2, data["image"])
    invert = Invertd("pred", prepare, orig_keys="image", nearest_interp=False, to_tensor=True)
    heat = invert(data)["pred"]
    picture = picture_of(heat)
    write_pictures(folder / "p", image=picture / 2, heatmap=picture, mask=picture > 1)
    write_nifti(folder / "p_heatmap.nii.gz", heat[0].numpy(), heat.affine.numpy())
    return folder / "p.png", folder / "p_heatmap"


@pytest.mark.parametrize("suffix", [".tiff", ".nii.gz"])
def test_heat_of_a_picture_lies_on_its_patch(tmp_path: Path, suffix: str) -> None:
    image, stem = write_picture(tmp_path)
    heatmap = stem.with_name(stem.name + suffix)
    (row,) = overlay_rows(image, heatmap, modality="retina_oct")
    patch = row.image == 250
    assert patch.sum() == 15
    assert row.heatmap[patch].min() > row.heatmap[~patch].max()


def test_slice_of_a_lesion_is_one_that_the_inferer_looked_at(tmp_path: Path) -> None:
    paths = write(tmp_path)
    lesion, heat = (nib.load(paths[name]) for name in ("mask", "heatmap"))
    marked, warm = np.asarray(lesion.dataobj).copy(), heat.get_fdata().copy()
    marked[..., 4] = marked[..., 3]
    marked[0, 0, 3] = 1  # the lesion is largest in slice 3, where nothing was looked at
    warm[..., :4] = 0
    nib.save(nib.Nifti1Image(marked, lesion.affine), paths["mask"])
    nib.save(nib.Nifti1Image(warm.astype(np.float32), heat.affine), paths["heatmap"])
    (row,) = overlay_rows(paths["image"], paths["heatmap"], mask=paths["mask"])
    assert row.index == 4
    nib.save(nib.Nifti1Image(np.zeros_like(warm, np.float32), heat.affine), paths["heatmap"])
    (row,) = overlay_rows(paths["image"], paths["heatmap"], mask=paths["mask"])
    assert row.index == 3  # looked at nowhere: the lesion is still shown


def test_ct_is_shown_in_the_window_that_the_network_sees(tmp_path: Path) -> None:
    hounsfield = np.full((6, 6, 2), -1000.0, np.float32)
    hounsfield[1:5, 1:5] = np.float32(100)
    hounsfield[2, 2] = 1500  # bone does not darken the liver
    nib.save(nib.Nifti1Image(hounsfield, np.eye(4)), tmp_path / "ct.nii.gz")
    nib.save(nib.Nifti1Image(np.ones_like(hounsfield), np.eye(4)), tmp_path / "heat.nii.gz")
    (row,) = overlay_rows(tmp_path / "ct.nii.gz", tmp_path / "heat.nii.gz", modality="liver_ct")
    assert set(np.unique(row.image)) == {0.0, 300.0, 450.0}
