"""Phantom OCT: layers in order, the vitreous on top, B-scans as axial slices, one eye a seed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from mcmiad_monai.phantom.retina import (
    RETINA_LESION_KINDS,
    RetinaVolume,
    make_retina_bscan,
    make_retina_volume,
)
from mcmiad_monai.transforms import CanonicalOrientation, NormalizeOCT, load_mask, load_volume

SMALL = (96, 80)


def surface(image: np.ndarray) -> np.ndarray:
    """Row of the retina's inner surface in every column of a B-scan (H, W)."""
    smooth = ndimage.gaussian_filter(image.astype(float), (1.5, 3.0))
    return np.argmax(smooth > 60, axis=0)


def canonical(volume: RetinaVolume, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask (X, Y, Z) in LPS after a way through files."""
    arrays = []
    for key, load in (("image", load_volume), ("mask", load_mask)):
        path = folder / f"{key}.nii.gz"
        nib.save(nib.Nifti1Image(getattr(volume, key), volume.affine), path)
        arrays.append(CanonicalOrientation("LPS")(load(path))[0].numpy())
    return arrays[0], arrays[1]


@pytest.mark.parametrize("seed", range(4))
def test_bscan_shows_vitreous_retina_with_pit_and_bright_epithelium(seed: int) -> None:
    scan = make_retina_bscan(seed)
    assert scan.image.shape == (192, 256)  # rows are depth
    assert scan.image.dtype == np.uint8
    assert scan.lesion is None
    assert not scan.mask.any()
    assert scan.image[:25].mean() < 40  # vitreous
    inner = surface(scan.image)
    assert inner.min() > 25
    # the pit lies in the middle third and is the deepest part of the surface, slope aside
    columns = np.arange(256)
    slope = np.polyval(np.polyfit(columns, inner, 1), columns)
    pit = int(np.argmax(ndimage.gaussian_filter(inner - slope, 4.0)))
    assert 85 < pit < 171
    smooth = ndimage.gaussian_filter(scan.image.astype(float), (1.0, 4.0))
    epithelium = smooth.argmax(axis=0)
    assert np.mean(epithelium > inner + 12) > 0.9  # the brightest band lies deep in the retina
    assert np.abs(np.diff(np.quantile(epithelium, (0.1, 0.9)))) < 45  # and is one band


def test_speckle_is_strong_and_has_fine_grain() -> None:
    image = make_retina_bscan(0).image.astype(float)
    ganglion_cells = np.stack(
        [image[top + 12 : top + 18, k] for k, top in enumerate(surface(image))]
    )
    sides = ganglion_cells[np.r_[20:80, 180:240]]  # away from the pit, (columns, rows)
    assert sides.std() / sides.mean() > 0.2
    residual = sides - sides.mean(axis=0)
    correlation = np.corrcoef(residual[:-4].ravel(), residual[4:].ravel())[0, 1]
    assert abs(correlation) < 0.15


@pytest.mark.parametrize("kind", RETINA_LESION_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_lesion_lies_in_the_same_eye_where_the_mask_says(kind: str, seed: int) -> None:
    healthy, ill = make_retina_bscan(seed), make_retina_bscan(seed, lesion=kind)
    inside = ill.mask > 0
    assert 0.003 < inside.mean() < 0.08
    change = np.abs(ill.image.astype(float) - healthy.image)
    assert change[inside].mean() > 20
    columns = ndimage.binary_dilation(inside.any(axis=0), iterations=24)
    assert not change[:, ~columns].any()  # beside the lesion, eye and speckle are the same
    inner = surface(healthy.image)
    rows = np.arange(inside.shape[0])[:, None]
    assert (rows > inner)[inside].mean() > 0.99  # below the retina's surface
    above = rows < inner - 4
    assert change[above].mean() < 0.5


def test_fluid_is_dark_and_drusen_raise_the_bright_band() -> None:
    for kind in ("intraretinal_fluid", "subretinal_fluid"):
        scan = make_retina_bscan(1, lesion=kind)
        core = ndimage.binary_erosion(scan.mask)
        assert scan.image[core].mean() < 45
    drusen = make_retina_bscan(1, lesion="drusen")
    assert drusen.image[drusen.mask > 0].mean() > 80
    # each druse carries the epithelium: its upper rim is brighter than its middle
    distance = ndimage.distance_transform_edt(drusen.mask)
    top = np.zeros_like(drusen.mask, dtype=bool)
    first = drusen.mask.argmax(axis=0)
    columns = np.flatnonzero(drusen.mask.any(axis=0))
    top[first[columns] + 1, columns] = True
    assert drusen.image[top].mean() > 1.2 * drusen.image[distance > 4].mean()


def test_same_seed_gives_same_scan_and_another_one_another_eye() -> None:
    first, second, other = (make_retina_bscan(seed, lesion="drusen") for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert np.abs(surface(first.image) - surface(other.image)).mean() > 1.5


@pytest.mark.parametrize("orientation", [None, "LPS", "RPI", "PIR", "SRP"])
def test_axial_slice_of_a_volume_is_a_bscan_with_depth_downwards(
    orientation: str | None, tmp_path: Path
) -> None:
    volume = make_retina_volume(
        3, lesion="subretinal_fluid", shape=SMALL, scans=5, orientation=orientation
    )
    if orientation is not None:
        assert nib.aff2axcodes(volume.affine) == tuple(orientation)
    image, mask = canonical(volume, tmp_path)
    assert image.shape == (96, 80, 5)
    for index in range(5):
        bscan = image[:, :, index].T  # rows are depth
        assert bscan[:10].mean() < 40 < bscan[45:60].mean()
    reference = make_retina_volume(
        3, lesion="subretinal_fluid", shape=SMALL, scans=5, orientation="LPS"
    )
    np.testing.assert_array_equal(image, reference.image)
    np.testing.assert_array_equal(mask, reference.mask)


def test_voxels_have_the_size_of_oct_in_the_world() -> None:
    volume = make_retina_volume(2, shape=SMALL, scans=6, orientation="LPS")
    across, depth, step = nib.affines.voxel_sizes(volume.affine)
    assert 5.6 <= 96 * across <= 6.4  # mm
    assert 1.05 <= 80 * depth <= 1.25
    assert 3.6 <= 5 * step <= 4.4


@pytest.mark.parametrize("kind", RETINA_LESION_KINDS)
@pytest.mark.parametrize("scans", [2, 7])
def test_every_kind_meets_a_bscan_of_every_volume(kind: str, scans: int) -> None:
    volume = make_retina_volume(5, lesion=kind, shape=SMALL, scans=scans)
    healthy = make_retina_volume(5, shape=SMALL, scans=scans)
    assert volume.mask.sum() > 15
    np.testing.assert_array_equal(volume.affine, healthy.affine)
    change = np.abs(volume.image.astype(float) - healthy.image)
    assert change[volume.mask > 0].mean() > 15


def test_fovea_is_met_in_the_middle_of_a_volume() -> None:
    volume = make_retina_volume(4, shape=SMALL, scans=9, orientation="LPS")
    depth = [surface(volume.image[:, :, k].T) for k in (0, 4)]
    outer, middle = (float(inner[38:58].max() - np.median(inner)) for inner in depth)
    assert middle > outer + 4  # rows


def test_oct_normaliser_finds_foreground(tmp_path: Path) -> None:
    volume = make_retina_volume(1, shape=SMALL, scans=4)
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(volume.image, volume.affine), path)
    normalised = NormalizeOCT()(CanonicalOrientation("LPS")(load_volume(path)))[0].numpy()
    assert (normalised > 0).all()
    assert normalised[:, :10].mean() < 0.2  # vitreous
    assert np.quantile(normalised, 0.9) > 0.4


def test_what_cannot_be_made_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'cyst' is not known.*drusen"):
        make_retina_bscan(0, lesion="cyst")
    with pytest.raises(ValueError, match="at least 2 B-scans"):
        make_retina_volume(0, scans=1)
