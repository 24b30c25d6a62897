"""Canonical orientation goes there and back without a voxel or an affine changing."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, SaveImaged
from scipy.spatial.transform import Rotation

from mcmiad_monai.transforms import (
    CanonicalOrientation,
    as_heatmap,
    preprocessing,
)


def _affine(kind: str) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, 3] = [-71.25, 33.5, 12.125]
    zooms = np.diag([0.9, 1.2, 3.5])
    linear = {
        "plain": np.eye(3),
        "flipped": np.diag([-1.0, 1.0, -1.0]),
        "permuted": np.eye(3)[[2, 0, 1]] * [1, -1, 1],
        "oblique": Rotation.from_euler("xyz", [21, -14, 33], degrees=True).as_matrix(),
        "diagonal": Rotation.from_euler("z", 45, degrees=True).as_matrix(),
        "sheared": np.array([[1, 0.1, 0], [0, 1, 0.35], [0.05, 0, 1]]),
        "everything": np.array([[0.1, -0.2, -1], [1, 0.15, 0.3], [0.2, 1, -0.1]]),
    }[kind]
    affine[:3, :3] = linear @ zooms
    return affine


KINDS = ["plain", "flipped", "permuted", "oblique", "diagonal", "sheared", "everything"]


def _volume(kind: str) -> MetaTensor:
    values = torch.arange(5 * 6 * 7, dtype=torch.float32).reshape(1, 5, 6, 7)
    return MetaTensor(values, affine=torch.from_numpy(_affine(kind)), meta={"space": "RAS"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "PIR"])
def test_voxels_keep_their_world_position(kind: str, axcodes: str) -> None:
    volume = _volume(kind)
    turned = CanonicalOrientation(axcodes)(volume)
    at = tuple(int(i) for i in np.argwhere(turned[0].numpy() == volume[0, 1, 4, 2].item())[0])
    world = turned.affine.numpy() @ [*at, 1]
    np.testing.assert_allclose(world, volume.affine.numpy() @ [1, 4, 2, 1], atol=1e-9)
    assert sorted(turned.unique().tolist()) == sorted(volume.unique().tolist())
    if kind != "diagonal":  # 45 degrees have two equally close orientations
        assert "".join(nib.aff2axcodes(turned.affine.numpy())) == axcodes


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_is_exact_and_the_input_left_alone(kind: str) -> None:
    volume, orient = _volume(kind), CanonicalOrientation()
    values, affine = volume.as_tensor().clone(), volume.affine.clone()
    turned = orient(volume)
    back = orient.inverse(turned)
    assert back.applied_operations == []
    turned += 1
    for kept in (back, volume):
        assert torch.equal(kept.as_tensor(), values)
        assert torch.equal(kept.affine, affine)
    assert volume.applied_operations == []
    with pytest.raises(ValueError, match="no affine"):
        orient(values)


@pytest.mark.parametrize("kind", KINDS)
def test_heatmap_file_has_the_grid_of_the_study(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(100, 20, (9, 8, 10)).astype("f4")
    study = tmp_path / "study.nii.gz"
    nib.save(nib.Nifti1Image(values, _affine(kind)), study)
    prepare = preprocessing("brain_mri", check_modality=False)  # of any proportions
    data = prepare({"image": str(study)})
    data["pred"] = as_heatmap(data["image"].as_tensor() * 2, data["image"])
    data = Invertd("pred", prepare, orig_keys="image", nearest_interp=False)(data)
    SaveImaged("pred", output_dir=tmp_path, separate_folder=False, print_log=False)(data)
    saved, source = nib.load(tmp_path / "study_trans.nii.gz"), nib.load(study)
    assert saved.shape == source.shape
    np.testing.assert_allclose(saved.affine, source.affine, atol=1e-5)
    # the same voxels, normalised: an increasing function of the source's, voxel by voxel
    order = np.argsort(values.ravel(), kind="stable")
    heat = saved.get_fdata().ravel()[order]
    assert (np.diff(heat) >= 0).all()
    assert heat[-1] > heat[0]
