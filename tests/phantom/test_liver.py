"""Phantom CT: Hounsfield units of an abdomen, lesions inside the liver, one person a seed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from mcmiad_monai.phantom.brain import ORIENTATIONS
from mcmiad_monai.phantom.liver import (
    LIVER_LESION_KINDS,
    LiverPhantom,
    make_liver_phantom,
)
from mcmiad_monai.transforms import CanonicalOrientation, NormalizeCT, load_volume

SMALL = (60, 50, 12)


def world_of(phantom: LiverPhantom, voxels: np.ndarray) -> np.ndarray:
    """World positions (N, 3) of a boolean array."""
    return nib.affines.apply_affine(phantom.affine, np.argwhere(voxels))


def litres(phantom: LiverPhantom, voxels: np.ndarray) -> float:
    return float(voxels.sum() * abs(np.linalg.det(phantom.affine[:3, :3])) / 1e6)


@pytest.mark.parametrize("seed", range(4))
def test_tissues_have_their_hounsfield_units(seed: int) -> None:
    phantom = make_liver_phantom(seed, shape=SMALL, orientation="LPS")
    assert phantom.image.dtype == np.int16
    assert phantom.image.min() >= -1024
    assert 350 < phantom.image.max() < 700  # cortical bone, no metal
    assert phantom.image[:2, :2].mean() == pytest.approx(-1000, abs=15)  # air beside the body
    core = ndimage.binary_erosion(phantom.organ)
    assert 85 < np.median(phantom.image[core]) < 125
    assert 4 < phantom.image[core].std() < 40  # noise and a few vessels
    body = phantom.image > -300
    for low, high, least in ((-130, -75, 0.08), (30, 90, 0.1), (135, 250, 0.01)):
        share = ((phantom.image > low) & (phantom.image < high)).sum() / body.sum()
        assert share > least  # fat, muscle and bowel, vessels with kidneys and bone


@pytest.mark.parametrize("seed", range(4))
def test_liver_has_a_livers_volume_and_lies_on_the_right(seed: int) -> None:
    phantom = make_liver_phantom(seed, shape=SMALL)
    assert 1.0 < litres(phantom, phantom.organ > 0) < 2.5
    assert ndimage.label(phantom.organ)[1] <= 2  # a lobe may be cut off by the diaphragm's dip
    liver = world_of(phantom, phantom.organ > 0).mean(0)
    body = world_of(phantom, phantom.image > -300).mean(0)
    assert liver[0] > body[0] + 30  # x grows to the patient's right


@pytest.mark.parametrize("kind", LIVER_LESION_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_lesion_lies_in_the_liver_of_the_same_person(kind: str, seed: int) -> None:
    healthy = make_liver_phantom(seed, shape=SMALL)
    ill = make_liver_phantom(seed, lesion=kind, shape=SMALL)
    assert ill.lesion == kind
    assert healthy.lesion is None
    assert not healthy.mask.any()
    np.testing.assert_array_equal(ill.organ, healthy.organ)
    np.testing.assert_array_equal(ill.affine, healthy.affine)
    inside = ill.mask > 0
    assert inside.any()
    assert ill.organ[inside].all()
    assert litres(ill, inside) < 0.25
    change = np.abs(ill.image.astype(float) - healthy.image)
    assert np.median(change[inside]) > 25
    assert not change[~ndimage.binary_dilation(inside, iterations=2)].any()  # the noise is the same


def test_kinds_of_lesion_have_their_density() -> None:
    def median(kind: str) -> float:
        phantom = make_liver_phantom(2, lesion=kind, shape=SMALL)
        return float(np.median(phantom.image[phantom.mask > 0]))

    assert -10 < median("cyst") < 30
    assert 30 < median("metastases") < 80
    assert 140 < median("hyperdense") < 230


def test_same_seed_gives_same_study_and_another_one_another_person() -> None:
    first, second, other = (
        make_liver_phantom(seed, lesion="cyst", shape=SMALL, orientation="LPS")
        for seed in (5, 5, 6)
    )
    for key in ("image", "mask", "organ", "affine"):
        np.testing.assert_array_equal(getattr(first, key), getattr(second, key))
    assert not np.allclose(first.affine, other.affine)
    assert np.abs(first.image.astype(float) - other.image).mean() > 20


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_storage_order_moves_no_voxel_in_the_world(orientation: str) -> None:
    reference = make_liver_phantom(4, lesion="cyst", shape=SMALL, orientation="RAS")
    stored = make_liver_phantom(4, lesion="cyst", shape=SMALL, orientation=orientation)
    assert nib.aff2axcodes(stored.affine) == tuple(orientation)
    for key in ("mask", "organ"):
        expected, found = (
            world_of(phantom, getattr(phantom, key) > 0) for phantom in (reference, stored)
        )
        np.testing.assert_allclose(
            found[np.lexsort(found.T.round(3))],
            expected[np.lexsort(expected.T.round(3))],
            atol=1e-6,
        )


def test_grids_are_oblique_anisotropic_and_stored_in_several_orders() -> None:
    studies = [make_liver_phantom(seed, shape=(24, 20, 6)) for seed in range(12)]
    assert len({nib.aff2axcodes(study.affine) for study in studies}) >= 4
    for study in studies:
        zooms = nib.affines.voxel_sizes(study.affine)
        directions = study.affine[:3, :3] / zooms
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
        assert zooms.max() / zooms.min() > 1.5
        off_axis = np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0, 1)))
        assert 3.0 < off_axis.max() < 26.0


def test_ct_normaliser_finds_the_body_with_its_gas_and_lungs(tmp_path: Path) -> None:
    phantom = make_liver_phantom(1, shape=SMALL)
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), path)
    volume = CanonicalOrientation("LPS")(load_volume(path))
    inside = NormalizeCT()(volume)[0].numpy() > 0  # (X, Y, Z)
    soft = volume[0].numpy() > -300
    assert inside[soft].mean() > 0.95
    assert inside[volume[0].numpy() < -700].mean() < 0.25  # lungs and gas, not the air around
    assert not inside[[0, -1]].any()


def test_unknown_lesion_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'mass' is not known.*cyst"):
        make_liver_phantom(0, lesion="mass", shape=SMALL)


def test_grid_too_coarse_for_a_liver_is_refused() -> None:
    with pytest.raises(ValueError, match="larger shape"):
        make_liver_phantom(0, lesion="cyst", shape=(2, 2, 2))
