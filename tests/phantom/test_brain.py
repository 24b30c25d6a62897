"""Phantom brains: the same for a seed, oblique and anisotropic, lesions where the mask says."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from mcmiad_monai.phantom.brain import LESION_KINDS, ORIENTATIONS, Phantom, make_phantom

SMALL = (48, 56, 16)


def world_of(phantom: Phantom, voxels: np.ndarray) -> np.ndarray:
    """World positions (N, 3) of a boolean array."""
    return nib.affines.apply_affine(phantom.affine, np.argwhere(voxels))


def test_same_seed_gives_the_same_study_and_another_seed_another_person() -> None:
    first, second = (make_phantom(5, lesion="mass", shape=SMALL) for _ in range(2))
    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    a, b = (make_phantom(seed, shape=SMALL, orientation="LPS") for seed in (1, 2))
    assert not np.allclose(a.affine, b.affine)
    assert np.corrcoef(a.image.ravel(), b.image.ravel())[0, 1] < 0.97


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_lesion_changes_the_image_under_its_mask_and_nowhere_else(kind: str) -> None:
    healthy = make_phantom(11, shape=SMALL)
    ill = make_phantom(11, lesion=kind, shape=SMALL)
    assert not healthy.mask.any()
    change = np.abs(ill.image.astype(float) - healthy.image)
    scale = np.percentile(healthy.image, 95)
    inside = ill.mask > 0
    millilitres = inside.sum() * abs(np.linalg.det(ill.affine[:3, :3])) / 1000
    assert 0.2 < millilitres < 350
    assert np.median(change[inside]) > 0.08 * scale
    # soft edges, and noise that depends on the signal, are all that differs outside
    assert change[~inside].mean() < 0.01 * scale
    assert change[~ndimage.binary_dilation(inside, iterations=3)].mean() < 0.002 * scale


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_storage_order_moves_no_voxel_in_the_world(orientation: str) -> None:
    reference = make_phantom(4, lesion="ring", shape=SMALL, orientation="RAS")
    stored = make_phantom(4, lesion="ring", shape=SMALL, orientation=orientation)
    assert nib.aff2axcodes(stored.affine) == tuple(orientation)
    for key in ("mask", "image"):
        expected, found = (
            world_of(p, getattr(p, key) == getattr(p, key).max()) for p in (reference, stored)
        )
        order = [np.lexsort(np.round(points, 3).T) for points in (found, expected)]
        np.testing.assert_allclose(found[order[0]], expected[order[1]], atol=1e-6)


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


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'tumour' is not known.*diffuse"):
        make_phantom(0, lesion="tumour", shape=SMALL)
    with pytest.raises(ValueError, match="larger shape"):
        make_phantom(0, lesion="multiple", shape=(2, 2, 2))
