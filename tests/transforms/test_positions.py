"""A canonical slice is found again in the array of the source file."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from oblique import oblique_affine
from PIL import Image
from scipy.spatial.transform import Rotation

from mcmiad_monai.transforms import CanonicalOrientation, load_volume
from mcmiad_monai.transforms.positions import source_slices

SHAPE = (4, 5, 6)
ORIENTATIONS = [
    "".join(codes) for axes in permutations(("LR", "PA", "IS")) for codes in product(*axes)
]


def make_volume(linear: np.ndarray) -> MetaTensor:
    """A volume of distinct numbers with a given 3x3 part of its affine."""
    affine = np.eye(4)
    affine[:3, :3] = linear[:3, :3]
    affine[:3, 3] = [-71.25, 33.5, 12.125]
    values = torch.arange(np.prod(SHAPE), dtype=torch.float32).reshape(1, *SHAPE)
    return MetaTensor(values, affine=torch.from_numpy(affine), meta={"space": "RAS"})


def assert_slices_are_found(volume: MetaTensor, axis: int) -> None:
    turned = CanonicalOrientation("LPS")(volume)
    source_axis, indices = source_slices(volume, axis)
    assert len(indices) == turned.shape[1 + axis] == volume.shape[1 + source_axis]
    for k, index in enumerate(indices):
        canonical = turned.as_tensor()[0].select(axis, k)
        source = volume.as_tensor()[0].select(source_axis, index)
        assert set(canonical.flatten().tolist()) == set(source.flatten().tolist())


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_storage_order_and_direction(codes: str) -> None:
    volume = make_volume(oblique_affine(codes))
    assert "".join(nib.aff2axcodes(volume.affine.numpy())) == codes
    for axis in range(3):
        assert_slices_are_found(volume, axis)


@pytest.mark.parametrize(
    "linear",
    [
        Rotation.from_euler("z", 45, degrees=True).as_matrix(),
        Rotation.from_euler("xyz", [45, 45, 0], degrees=True).as_matrix(),
        np.array([[1, 0.1, 0], [0, 1, 0.35], [0.05, 0, 1]]) * [0.9, 1.2, 3.5],
        np.array([[0.1, -0.2, -1], [1, 0.15, 0.3], [0.2, 1, -0.1]]) * [0.9, 1.2, 3.5],
    ],
    ids=["diagonal", "twice diagonal", "sheared", "permuted and oblique"],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_oblique_and_ambiguous_axes(linear: np.ndarray, axis: int) -> None:
    assert_slices_are_found(make_volume(linear), axis)


@pytest.mark.parametrize(
    ("codes", "axis", "expected"),
    [
        ("LPS", 2, (2, [0, 1, 2, 3, 4, 5])),
        ("LPI", 2, (2, [5, 4, 3, 2, 1, 0])),
        ("RAS", 0, (0, [3, 2, 1, 0])),
        ("SLP", 2, (0, [0, 1, 2, 3])),
        ("PIR", 2, (1, [4, 3, 2, 1, 0])),
        ("PIR", 0, (2, [5, 4, 3, 2, 1, 0])),
    ],
)
def test_axis_and_indices_by_hand(codes: str, axis: int, expected: tuple[int, list[int]]) -> None:
    assert source_slices(make_volume(oblique_affine(codes)), axis) == expected


def test_picture_is_slice_zero(tmp_path: Path) -> None:
    Image.fromarray(np.arange(600).reshape(20, 30).astype("u2")).save(tmp_path / "p.png")
    assert source_slices(load_volume(tmp_path / "p.png"), 2) == (2, [0])
