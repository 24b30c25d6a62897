"""Slices know where they came from: there, back, and in millimetres."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from oblique import OBLIQUE

from mcmiad_monai.transforms import (
    ExtractSlices,
    as_heatmap,
    foreground_slices,
    insert_slices,
    restore_maps,
    slice_batch,
    slice_to_world,
)
from mcmiad_monai.transforms.resize import resize_bilinear


def _volume(shape: tuple[int, int, int] = (30, 44, 12)) -> MetaTensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 1, 5, 6, 4), generator=generator)
    smooth = F.interpolate(coarse, size=shape, mode="trilinear")[0] + 0.1
    return MetaTensor(smooth, affine=torch.from_numpy(OBLIQUE))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_network_slice_has_y_as_rows_and_x_as_columns(axis: int) -> None:
    volume = _volume((24, 24, 24))
    batch = slice_batch(volume, [3, 17, -1], axis=axis, size=24)
    assert type(batch) is torch.Tensor
    for row, k in zip(batch, (3, 17, 23), strict=True):
        plane = volume.as_tensor()[0].select(axis, k)  # (X, Y)
        torch.testing.assert_close(row[0], plane.T)


def test_resizing_is_antialiased_bilinear_and_nearest_for_masks() -> None:
    volume = _volume((60, 80, 3))
    plane = volume.as_tensor()[0, :, :, 1].T[None, None]  # (1, 1, Y, X)
    shrunk = F.interpolate(plane, size=(32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(slice_batch(volume, [1], size=32), shrunk)
    grown = F.interpolate(plane, size=(224, 224), mode="bilinear")
    torch.testing.assert_close(slice_batch(volume, [1]), grown)
    mask = (volume > 0.6).float()
    assert set(slice_batch(mask, [1], size=33, mode="nearest").unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 9, 4), (300, 20, 1)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tiny_and_thin_planes_go_there_and_back(shape: tuple[int, int, int], axis: int) -> None:
    volume = _volume(shape)
    out = torch.zeros_like(volume.as_tensor())
    batch = slice_batch(volume, range(shape[axis]), axis=axis)
    assert batch.shape == (shape[axis], 1, 224, 224)
    plane_shape = tuple(s for a, s in enumerate(shape) if a != axis)
    planes = restore_maps(batch, plane_shape=plane_shape)
    insert_slices(out, planes, range(shape[axis]), axis=axis)
    # smoothing at the way back flattens single voxels, but every voxel keeps its place
    pairs = torch.stack([out.flatten(), volume.as_tensor().flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.9


@pytest.mark.parametrize("size", [(9, 1), (1, 9), (1, 1), (9, 2)])
@pytest.mark.parametrize("source", [(224, 224), (224, 1), (1, 224), (300, 1)])
def test_resizing_of_thin_planes_is_separable(
    source: tuple[int, int], size: tuple[int, int]
) -> None:
    rows, columns = torch.rand(2, source[0]).double(), torch.rand(2, source[1]).double()
    planes = rows[:, None, :, None] * columns[:, None, None, :]  # (2, 1, H, W)

    def along(line: torch.Tensor, n: int) -> torch.Tensor:
        wide = line[:, None, None, :].repeat(1, 1, 8, 1)  # (2, 1, 8, length)
        return F.interpolate(wide, size=(8, n), mode="bilinear", antialias=True)[:, 0, 0]

    expected = along(rows, size[0])[:, None, :, None] * along(columns, size[1])[:, None, None, :]
    torch.testing.assert_close(resize_bilinear(planes, size), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("marker", [(4, 31, 7), (25, 9, 2)])
def test_marker_is_found_at_its_world_position(axis: int, marker: tuple[int, int, int]) -> None:
    volume = torch.zeros(1, 30, 44, 12)
    volume[(0, *marker)] = 1
    index = marker[axis]
    size = 24 * 11 * 5  # many network pixels for each voxel, so that the peak is a plateau's centre
    pixels = slice_batch(volume, [index], axis=axis, size=size, mode="nearest")[0, 0]
    row, column = np.argwhere(pixels.numpy() == 1).mean(axis=0)
    matrix = slice_to_world(OBLIQUE, volume.shape, axis=axis, index=index, size=size)
    world = matrix @ [column, row, 0, 1]
    np.testing.assert_allclose(world, OBLIQUE @ [*marker, 1], atol=1e-2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_network_pixel_of_a_world_point_lands_on_its_voxel_again(axis: int) -> None:
    marker = (11, 20, 5)
    matrix = slice_to_world(torch.from_numpy(OBLIQUE), (30, 44, 12), axis=axis, index=marker[axis])
    column, row, depth, _ = np.linalg.solve(matrix, OBLIQUE @ [*marker, 1])
    assert depth == pytest.approx(0, abs=1e-9)
    heat = torch.zeros(1, 1, 224, 224)
    x = torch.arange(224.0)
    heat[0, 0] = torch.exp(-((x[None] - column) ** 2 + (x[:, None] - row) ** 2) / 50)
    out = torch.zeros(1, 30, 44, 12)
    plane_shape = [s for a, s in enumerate((30, 44, 12)) if a != axis]
    insert_slices(out, restore_maps(heat, plane_shape=plane_shape), [marker[axis]], axis=axis)
    assert tuple(np.unravel_index(int(out.argmax()), out.shape)[1:]) == marker


def test_third_coordinate_counts_slices() -> None:
    first, second = (slice_to_world(OBLIQUE, (9, 8, 7), axis=1, index=k, size=16) for k in (3, 4))
    np.testing.assert_allclose(first @ [5, 6, 1, 1], second @ [5, 6, 0, 1])


def test_foreground_slices_count_the_share_above_zero() -> None:
    volume = torch.zeros(1, 10, 10, 5)
    volume[0, 0, :1, 1] = 0.5  # 1 %
    volume[0, 0, :2, 2] = 0.5  # 2 %
    volume[0, :, :, 4] = 0.5
    assert foreground_slices(volume) == [2, 4]
    assert foreground_slices(volume, min_fraction=0) == [1, 2, 4]
    assert foreground_slices(volume, axis=0, min_fraction=0.5) == []
    assert foreground_slices(volume.transpose(1, 3), axis=0) == [2, 4]


def test_insertion_is_in_place_and_leaves_other_slices() -> None:
    out = _volume((4, 5, 6))
    before = out.as_tensor().clone()
    insert_slices(out, torch.full((2, 4, 6), 9.0), [3, 0], axis=1)
    assert (out[0, :, [0, 3]] == 9).all()
    assert torch.equal(out.as_tensor()[0, :, [1, 2, 4]], before[0, :, [1, 2, 4]])
    with pytest.raises(ValueError, match="2 planes were given for 1"):
        insert_slices(out, torch.zeros(2, 4, 6), [1], axis=1)
    with pytest.raises(ValueError, match=r"\(n, 1, h, w\)"):
        restore_maps(torch.zeros(2, 3, 14, 14), plane_shape=(5, 6))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_extracted_slices_come_back_as_the_volume(axis: int) -> None:
    volume, indices = _volume((60, 80, 50)), [2, 30, 11]
    original = volume.as_tensor().clone().movedim(1 + axis, 1)[0]
    extract = ExtractSlices(axis=axis, indices=indices)
    stack = extract(volume)
    assert stack.shape == (3, 1, 224, 224)
    origin = {"indices": indices, "axis": axis, "source_shape": [60, 80, 50]}
    assert stack.meta["slices"] == origin
    back = extract.inverse(stack)
    assert back.shape == volume.shape
    assert torch.equal(back.affine, volume.affine)
    restored = back.as_tensor()[0].movedim(axis, 0)
    assert (restored[indices] - original[indices]).abs().max() < 0.02
    assert restored[[0, 1, 3, 29, 40]].abs().max() == 0
    stack.mul_(0)
    assert torch.equal(volume.as_tensor()[0].movedim(axis, 0), original)
    assert volume.applied_operations == []
    assert "slices" not in volume.meta


def test_nothing_to_cut_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"2\.0% of foreground"):
        ExtractSlices()(MetaTensor(torch.zeros(1, 4, 4, 4)))


def test_heatmap_takes_geometry_and_copies_it() -> None:
    volume = _volume((3, 4, 5))
    heat = as_heatmap(np.ones((1, 3, 4, 5)), volume)
    assert heat.dtype == torch.float32
    assert torch.equal(heat.affine, volume.affine)
    heat.meta["extra"] = 1
    assert "extra" not in volume.meta
    with pytest.raises(ValueError, match="does not fit"):
        as_heatmap(torch.ones(1, 3, 4, 6), volume)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_context_is_the_slice_between_its_neighbours(axis: int) -> None:
    values = torch.rand(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    n = values.shape[1 + axis]
    shown = slice_batch(values, [0, 3, -1, 3], axis=axis, size=16, context=3)
    assert shown.shape == (4, 3, 16, 16)
    alone = slice_batch(values, range(n), axis=axis, size=16)[:, 0]
    expected = [(0, 0, 1), (2, 3, 4), (n - 2, n - 1, n - 1), (2, 3, 4)]  # ends are repeated
    torch.testing.assert_close(shown, torch.stack([alone[list(three)] for three in expected]))
    single = slice_batch(values.narrow(1 + axis, 0, 1), [0], axis=axis, size=16, context=3)
    assert torch.equal(single, single[:, :1].expand(-1, 3, -1, -1))
    with pytest.raises(IndexError):
        slice_batch(values, [n], axis=axis, context=3)


def test_context_and_colours_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="set keep_colours to false, or context to 1"):
        slice_batch(torch.zeros(3, 4, 4, 1), [0], context=3)
    with pytest.raises(ValueError, match="context is 5; it must be 1"):
        slice_batch(torch.zeros(1, 4, 4, 1), [0], context=5)
