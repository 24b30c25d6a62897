"""Phantom studies: the same for a seed, oblique and anisotropic, lesions where the mask says."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from mcmiad_monai.phantom.brain import (
    LESION_KINDS,
    ORIENTATIONS,
    Phantom,
    make_phantom,
)

SMALL = (48, 56, 16)


def world_of(phantom: Phantom, voxels: np.ndarray) -> np.ndarray:
    """World positions (N, 3) of a boolean array."""
    return nib.affines.apply_affine(phantom.affine, np.argwhere(voxels))


def test_same_seed_gives_same_study() -> None:
    first, second = (make_phantom(5, lesion="mass", shape=SMALL) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_array_equal(first.affine, second.affine)


def test_seeds_give_different_people() -> None:
    one, two = (make_phantom(seed, shape=SMALL, orientation="LPS") for seed in (1, 2))
    assert not np.allclose(one.affine, two.affine)
    assert np.corrcoef(one.image.ravel(), two.image.ravel())[0, 1] < 0.97


def test_normal_study_has_no_lesion() -> None:
    phantom = make_phantom(3, shape=SMALL)
    assert phantom.lesion is None
    assert phantom.mask.dtype == np.uint8
    assert not phantom.mask.any()


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_lesion_changes_the_image_under_its_mask_and_nowhere_else(kind: str) -> None:
    healthy = make_phantom(11, shape=SMALL)
    ill = make_phantom(11, lesion=kind, shape=SMALL)
    change = np.abs(ill.image.astype(float) - healthy.image)
    scale = np.percentile(healthy.image, 95)
    inside = ill.mask > 0
    assert inside.any()
    assert np.median(change[inside]) > 0.08 * scale
    # Soft edges and the noise's dependence on the signal are all that differs outside.
    assert change[~inside].mean() < 0.01 * scale
    far = ~_grown(inside, 3)
    assert change[far].mean() < 0.002 * scale


def _grown(mask: np.ndarray, voxels: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.binary_dilation(mask, iterations=voxels)


@pytest.mark.parametrize("kind", LESION_KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_every_kind_is_visible_in_every_study(kind: str, seed: int) -> None:
    phantom = make_phantom(seed, lesion=kind)
    voxel = abs(np.linalg.det(phantom.affine[:3, :3])) / 1000.0  # millilitres
    assert 0.2 < phantom.mask.sum() * voxel < 350.0


def test_hypointense_lesion_is_dark_and_mass_is_bright() -> None:
    def contrast(kind: str) -> float:
        healthy, ill = make_phantom(8), make_phantom(8, lesion=kind)
        inside = ill.mask > 0
        # the darker quarter: an infarct has a bright rim
        before, after = (np.quantile(p.image[inside], 0.25) for p in (healthy, ill))
        return float(after - before)

    assert contrast("hypointense") < 0 < contrast("mass")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_storage_order_moves_no_voxel_in_the_world(orientation: str) -> None:
    reference = make_phantom(4, lesion="ring", shape=SMALL, orientation="RAS")
    stored = make_phantom(4, lesion="ring", shape=SMALL, orientation=orientation)
    assert nib.aff2axcodes(stored.affine) == tuple(orientation)
    expected = world_of(reference, reference.mask > 0)
    found = world_of(stored, stored.mask > 0)
    np.testing.assert_allclose(
        found[np.lexsort(found.T)], expected[np.lexsort(expected.T)], atol=1e-6
    )
    brightest = reference.image == reference.image.max()
    np.testing.assert_allclose(
        world_of(stored, stored.image == stored.image.max()).mean(0),
        world_of(reference, brightest).mean(0),
        atol=1e-6,
    )


def test_head_lies_at_one_place_in_the_world_on_every_grid() -> None:
    coarse = make_phantom(6, shape=(64, 64, 24), orientation="RAS")
    fine = make_phantom(6, shape=(96, 96, 36), orientation="PIR")
    centres = []
    for phantom in (coarse, fine):
        weights = phantom.image.astype(float).ravel()
        world = world_of(phantom, np.ones(phantom.image.shape, bool))
        centres.append((world * weights[:, None]).sum(0) / weights.sum())
    np.testing.assert_allclose(centres[0], centres[1], atol=1.5)


def test_grids_are_oblique_anisotropic_and_stored_in_several_orders() -> None:
    studies = [make_phantom(seed, shape=SMALL) for seed in range(12)]
    assert len({nib.aff2axcodes(study.affine) for study in studies}) >= 4
    for study in studies:
        zooms = nib.affines.voxel_sizes(study.affine)
        directions = study.affine[:3, :3] / zooms
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
        assert zooms.max() / zooms.min() > 1.5
        off_axis = np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0, 1)))
        assert 3.0 < off_axis.max() < 26.0


def test_default_study_is_a_head_in_the_air() -> None:
    phantom = make_phantom(0, orientation="LPS")
    assert phantom.image.shape == (96, 112, 24)
    assert phantom.image.dtype == np.int16
    assert phantom.image.min() >= 0
    corner = phantom.image[:6, :6].mean()
    middle = phantom.image[40:56, 48:64, 14:16].mean()
    assert middle > 5 * corner


def test_unknown_lesion_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'tumour' is not known.*diffuse"):
        make_phantom(0, lesion="tumour", shape=SMALL)


def test_grid_too_coarse_for_a_brain_is_refused() -> None:
    with pytest.raises(ValueError, match="larger shape"):
        make_phantom(0, lesion="multiple", shape=(2, 2, 2))
