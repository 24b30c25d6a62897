from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from oblique import SPACING, oblique_affine
from torch import Tensor

from mcmiad_monai.inference.inferer import SLICE_SCORES, SliceHeatmapInferer
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.transforms import preprocessing

NETWORK = 224


def ellipsoid_head(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Any:
    """A noisy grey ellipsoid, centred in its grid."""
    rng = np.random.default_rng(0)
    middle = (np.array(shape) - 1) / 2
    offsets = (np.indices(shape).T - middle) * spacing  # (Z, Y, X, 3)
    radii = np.array(shape) * spacing * 0.42
    inside = ((offsets / radii) ** 2).sum(-1).T < 1
    return np.where(inside, 300 + 15 * rng.standard_normal(shape), 5 * rng.random(shape))


def brightness(images: Tensor) -> Tensor:
    """A network that says: bright is anomalous."""
    return images**4


def heatmap_of(path: Path, inferer: SliceHeatmapInferer) -> MetaTensor:
    """The road of the bundle: prepare, infer, and go back to the grid of the file."""
    prepare = preprocessing("brain_mri")
    sample = prepare({"image": str(path)})
    sample["pred"] = inferer(sample["image"][None], brightness)[0]
    back = Invertd("pred", prepare, orig_keys="image", nearest_interp=False, to_tensor=True)
    return back(sample)["pred"]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "AIL", "IPR"])
def test_lesion_lands_where_it_is_in_the_world(tmp_path: Path, codes: str) -> None:
    size = {"R": 70, "L": 70, "A": 90, "P": 90, "S": 14, "I": 14}
    zooms = tuple(SPACING[c] for c in codes)
    shape = tuple(size[c] for c in codes)
    volume = ellipsoid_head(shape, zooms)  # type: ignore[arg-type]
    # off the middle on every axis, so that any flip or swap moves it
    lesion = tuple(int(0.64 * n) if i % 2 else int(0.38 * n) for i, n in enumerate(shape))
    reach = [max(1, round(3.0 / z)) if z < 3 else 0 for z in zooms]
    volume[tuple(slice(c - r, c + r + 1) for c, r in zip(lesion, reach, strict=True))] = 900
    affine = oblique_affine(codes)
    path = tmp_path / "study.nii.gz"
    nib.save(nib.Nifti1Image(volume.astype(np.int16), affine), path)

    heatmap = heatmap_of(path, SliceHeatmapInferer(axis=2))

    assert tuple(heatmap.shape[1:]) == shape
    np.testing.assert_allclose(heatmap.affine, affine, atol=1e-5)
    hottest = np.unravel_index(int(heatmap[0].argmax()), shape)
    to_world = nib.affines.apply_affine
    offset = np.linalg.inv(affine[:3, :3]) @ (to_world(affine, hottest) - to_world(affine, lesion))
    # the lesion is flat over its extent; beyond it, one voxel of the network grid is allowed
    pixel = [r + max(1.0, n / NETWORK) for r, n in zip(reach, shape, strict=True)]
    assert (np.abs(offset) <= np.array(pixel)).all()


def volume_of(array: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.as_tensor(array, dtype=torch.float32)[None, None])


def test_heatmap_is_zero_outside_the_foreground_and_in_skipped_slices() -> None:
    array = np.zeros((20, 24, 6))
    array[4:16, 5:20, 1:5] = 0.5
    array[0, 0, 5] = 0.7  # a speck: this slice is background
    heatmap = SliceHeatmapInferer(size=32)(volume_of(array), lambda images: images + 1)
    inside = array > 0
    inside[..., 5] = False
    heat = heatmap.numpy()[0, 0]
    assert (heat[~inside] == 0).all()
    assert (heat[inside] > 0).all()
    scores = heatmap.meta[SLICE_SCORES][0]
    assert torch.isnan(scores).tolist() == [True, False, False, False, False, True]


def test_slice_range_limits_what_is_looked_at() -> None:
    heatmap = SliceHeatmapInferer(size=32, slice_range=(0.25, 0.75))(
        volume_of(np.full((16, 16, 8), 0.5)), brightness
    )
    seen = torch.isfinite(heatmap.meta[SLICE_SCORES][0])
    assert seen.nonzero().flatten().tolist() == [2, 3, 4, 5]
    assert (heatmap[..., 6:] == 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_run_along_the_chosen_axis(axis: int) -> None:
    array = np.full((18, 16, 14), 0.2)
    np.moveaxis(array, axis, 0)[5] = 0.9
    heatmap = SliceHeatmapInferer(axis=axis, size=32)(volume_of(array), brightness)
    profile = np.moveaxis(heatmap.numpy()[0, 0], axis, 0).reshape(array.shape[axis], -1).mean(1)
    assert int(profile.argmax()) == 5
    assert int(heatmap.meta[SLICE_SCORES][0].argmax()) == 5


def test_batch_size_changes_nothing_and_bounds_a_call() -> None:
    volume = volume_of(np.random.default_rng(0).uniform(0.1, 1, (20, 18, 11)))
    calls: list[int] = []

    def counted(images: Tensor) -> Tensor:
        calls.append(len(images))
        return brightness(images)

    one = SliceHeatmapInferer(size=32, batch_size=4)(volume, counted)
    assert calls == [4, 4, 3]
    torch.testing.assert_close(one, SliceHeatmapInferer(size=32, batch_size=11)(volume, brightness))


def test_batch_of_volumes_is_done_one_by_one() -> None:
    rng = np.random.default_rng(1)
    arrays = rng.uniform(0.1, 1, (2, 1, 12, 14, 5)).astype(np.float32)
    inferer = SliceHeatmapInferer(size=32)
    both = inferer(MetaTensor(torch.from_numpy(arrays)), brightness)
    for b in range(2):
        alone = inferer(MetaTensor(torch.from_numpy(arrays[b : b + 1])), brightness)
        torch.testing.assert_close(both[b : b + 1].as_tensor(), alone.as_tensor())


def test_slice_score_is_that_of_the_foreground() -> None:
    array = np.zeros((32, 32, 1))
    array[8:24, 8:24] = np.random.default_rng(2).uniform(0.1, 1, (16, 16))[..., None]
    array = array.astype(np.float32)
    heatmap = SliceHeatmapInferer(size=32)(volume_of(array), brightness)
    image = torch.from_numpy(array[..., 0].T.copy())[None, None]
    expected = AnomalyScore().slice_score(brightness(image), image > 0)
    torch.testing.assert_close(heatmap.meta[SLICE_SCORES][0], expected)


def test_volume_of_one_slice_and_volume_without_foreground() -> None:
    inferer = SliceHeatmapInferer(size=32)
    assert inferer(volume_of(np.full((7, 5, 1), 0.5)), brightness).shape == (1, 1, 7, 5, 1)
    assert not inferer(volume_of(np.zeros((7, 5, 3))), brightness).any()


def test_wrong_shapes_and_options_are_refused() -> None:
    with pytest.raises(TypeError, match="has no geometry"):
        SliceHeatmapInferer()(torch.zeros(1, 1, 4, 4, 4), brightness)
    with pytest.raises(ValueError, match=r"expected \(B, 1, X, Y, Z\)"):
        SliceHeatmapInferer()(MetaTensor(torch.zeros(1, 2, 4, 4, 4)), brightness)
    with pytest.raises(ValueError, match="slice axis 3"):
        SliceHeatmapInferer(axis=3)
    with pytest.raises(ValueError, match="batch_size 0"):
        SliceHeatmapInferer(batch_size=0)


def test_context_shows_neighbours_that_are_not_looked_at() -> None:
    array = np.random.default_rng(3).uniform(0.1, 1, (16, 16, 8))
    array[2:, :, 1] = 0  # too little foreground to be looked at
    seen: list[Tensor] = []

    def network(images: Tensor) -> Tensor:
        seen.append(images)
        return images[:, 1:2]

    options: dict[str, Any] = {"size": 16, "slice_range": (0.25, 0.75), "min_foreground": 0.5}
    found = SliceHeatmapInferer(context=3, batch_size=3, **options)(volume_of(array), network)
    images = torch.cat(seen)  # slices 2 to 5
    volume = torch.from_numpy(array.astype(np.float32)).permute(2, 1, 0)
    torch.testing.assert_close(images, torch.stack([volume[k - 1 : k + 2] for k in range(2, 6)]))
    plain = SliceHeatmapInferer(**options)(volume_of(array), lambda images: images)
    torch.testing.assert_close(found.as_tensor(), plain.as_tensor())
    with pytest.raises(ValueError, match="context is 2"):
        SliceHeatmapInferer(context=2)
