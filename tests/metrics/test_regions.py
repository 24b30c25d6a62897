from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_froc_curve_data
from scipy.ndimage import gaussian_filter
from skimage.measure import label
from torch import Tensor

from mcmiad_monai.metrics.regions import AUPRO, FROC


def images(count: int = 6, size: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth heatmaps (B, 1, H, W) and masks of lesions of several sizes, some without."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), dtype=np.uint8)
    heat = np.zeros((count, size, size))
    for k in range(count):
        for _ in range(k % 4):
            y, x = rng.integers(4, size - 8, 2)
            r = int(rng.integers(1, 6))
            masks[k, y : y + r, x : x + r] = 1
        noise = gaussian_filter(rng.normal(size=(size, size)), 1.5)
        heat[k] = np.exp(2 * noise + gaussian_filter(masks[k].astype(float), 2))
    return torch.from_numpy(heat)[:, None].float(), torch.from_numpy(masks)[:, None]


def exact_aupro(heat: Tensor, mask: Tensor, limit: float) -> float:
    """The definition, at every threshold there is."""
    regions = []
    for h, m in zip(heat.numpy()[:, 0], mask.numpy()[:, 0], strict=True):
        labels = label(m > 0, connectivity=2)
        regions += [np.sort(h[labels == k]) for k in range(1, labels.max() + 1)]
    normal = np.sort(heat.numpy()[mask.numpy() == 0])
    thresholds = np.unique(heat.numpy())[::-1]

    def share_above(values: np.ndarray) -> np.ndarray:
        return 1 - np.searchsorted(values, thresholds) / len(values)

    fpr = np.concatenate([[0], share_above(normal)])
    pro = np.concatenate([[0], np.mean([share_above(r) for r in regions], axis=0)])
    grid = np.unique(np.concatenate([fpr[fpr <= limit], [limit]]))
    # at equal false-positive rates the curve rises straight up: take its upper end
    upper = np.array([pro[fpr <= x].max() for x in grid])
    lower = np.array([pro[fpr < x].max() if (fpr < x).any() else 0 for x in grid])
    end = np.interp(limit, fpr, pro)
    lower[-1], upper[-1] = end, end
    area = sum(
        (grid[i + 1] - grid[i]) * (upper[i] + min(p for p in pro[fpr == grid[i + 1]])) / 2
        if (fpr == grid[i + 1]).any()
        else (grid[i + 1] - grid[i]) * (upper[i] + end) / 2
        for i in range(len(grid) - 1)
    )
    return float(area / limit)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_aupro_is_that_of_the_definition(limit: float, ties: bool, seed: int) -> None:
    heat, mask = images(seed=seed)
    if ties:
        heat = (heat * 2).round() / 2  # nothing but zeros in much of the image
    metric = AUPRO(fpr_limit=limit)
    for part in torch.arange(len(heat)).split(4):
        metric.update((heat[part], mask[part]))
    assert metric.compute() == pytest.approx(exact_aupro(heat, mask, limit), abs=1e-4)


def test_small_and_large_lesions_count_alike() -> None:
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 0, 0], mask[..., 5:15, 5:15] = 1, 1
    heat = torch.full_like(mask, 0.5)
    heat[..., 5:15, 5:15] = 2  # the large lesion is found at once, the pixel with all the rest
    metric = AUPRO(fpr_limit=0.3)
    metric.update((heat, mask))
    # overlap 1/2 at no false positive; then a straight line to 1 at a rate of 1
    assert metric.compute() == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "large", "small"),
    [
        ((6, 6), ((0, 1), (0, 1)), (4, 4)),  # pixels that touch at a corner
        ((4, 4, 4), ((1, 2), (1, 1), (1, 1)), (3, 3, 3)),  # voxels of two slices
    ],
)
def test_what_touches_is_one_lesion(shape: Any, large: Any, small: Any) -> None:
    mask, heat = torch.zeros(1, 1, *shape), torch.ones(1, 1, *shape)
    mask[0, 0][large] = mask[0, 0][small] = 1
    heat[0, 0][large] = 5
    metric = AUPRO(fpr_limit=1.0)
    metric.update((heat, mask))
    assert metric.compute() == pytest.approx(0.75)  # one of two lesions, then the diagonal


@pytest.mark.parametrize("kind", [AUPRO, FROC])
@pytest.mark.parametrize("shape", [(5, 5), (1, 5, 5), (1, 2, 5, 5), (1, 1, 2, 2, 2, 2)])
def test_anything_but_a_batch_of_one_channel_is_refused(
    kind: type[AUPRO] | type[FROC], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, D, H, W\) is needed"):
        kind().update((torch.rand(shape), torch.zeros(shape)))


@pytest.mark.parametrize("kind", [AUPRO, FROC])
def test_heatmap_that_is_no_number_on_a_lesion_is_refused(kind: type[AUPRO] | type[FROC]) -> None:
    heat, mask = images(3)
    heat[mask > 0] = math.nan
    with pytest.raises(ValueError, match="overflow"):
        kind().update((heat, mask))


@pytest.mark.parametrize("kind", [AUPRO, FROC])
def test_empty_batch_changes_nothing(kind: type[AUPRO] | type[FROC]) -> None:
    metric, empty = kind(), (torch.zeros(0, 1), torch.zeros(0, 1))
    metric.update(empty)
    metric.update(images())
    metric.update(empty)
    expected = kind()
    expected.update(images())
    assert metric.compute() == expected.compute()


def spots(*places: tuple[int, float], size: int = 30) -> Tensor:
    """A line (1, 1, 1, size) with single bright pixels."""
    line = torch.zeros(1, 1, 1, size)
    for place, value in places:
        line[..., place] = value
    return line


def test_froc_by_hand() -> None:
    metric = FROC(false_positives=(0.0, 0.5, 1.0))
    # lesions at 2, 10, 20; the third is not found; false candidates at 5 (4.0) and 25 (1.5)
    mask = spots((2, 1), (10, 1), (20, 1))
    metric.update((spots((2, 3.0), (5, 4.0), (10, 2.0), (25, 1.5), (20, 0.9)), mask))
    assert metric.compute()["sensitivity_at_0fp"] == 0
    metric.update((spots((7, 2.5)), spots()))  # a normal volume with a false candidate
    found = metric.compute()
    # two volumes; false scores 4, 2.5, 1.5. None allowed: above 4. One: above 2.5. Two: above 1.5
    assert found["sensitivity_at_0fp"] == 0
    assert found["sensitivity_at_0.5fp"] == pytest.approx(1 / 3)
    assert found["sensitivity_at_1fp"] == pytest.approx(2 / 3)
    assert found["froc"] == pytest.approx((0 + 1 / 3 + 2 / 3) / 3)


def scores_of_candidates(
    heat: Tensor, mask: Tensor, threshold: float
) -> tuple[list[float], list[float]]:
    """By the definition, pair by pair: of lesions that are found, and of false candidates."""
    hits, false = [], []
    for h, m in zip(heat.numpy()[:, 0], mask.numpy()[:, 0], strict=True):
        regions, lesions = label(h > threshold, connectivity=2), label(m > 0, connectivity=2)
        peaks = {k: float(h[regions == k].max()) for k in range(1, regions.max() + 1)}
        touching = [set(regions[lesions == j]) - {0} for j in range(1, lesions.max() + 1)]
        hits += [max(peaks[k] for k in each) for each in touching if each]
        false += [peak for k, peak in peaks.items() if not any(k in each for each in touching)]
    return hits, false


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_froc_has_the_operating_points_of_monai(threshold: float) -> None:
    heat, mask = images(12, seed=3)
    hits, false = scores_of_candidates(heat, mask, threshold)
    lesions = sum(int(label(m > 0, connectivity=2).max()) for m in mask.numpy()[:, 0])
    # MONAI leaves the lowest score out; one more below all others brings it back
    rates, shares = compute_froc_curve_data(
        np.array(false), np.array([*hits, 0.0]), lesions, len(heat)
    )
    asked = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 8.0)
    metric = FROC(threshold=threshold, false_positives=asked)
    metric.update((heat, mask))
    found = metric.compute()
    expected = [shares[rates <= rate].max() for rate in asked]
    assert [found[f"sensitivity_at_{rate:g}fp"] for rate in asked] == pytest.approx(expected)
    assert found["froc"] == pytest.approx(np.mean(expected))
    assert expected[0] < expected[-1]


def test_impossible_rates_are_refused() -> None:
    for limit in (0.0, 1.1, -0.3):
        with pytest.raises(ValueError, match="fpr_limit"):
            AUPRO(fpr_limit=limit)
    for rates in ((), (-1.0, 2.0)):
        with pytest.raises(ValueError, match="false_positives"):
            FROC(false_positives=rates)


def test_figures_without_a_lesion_or_without_a_normal_pixel_are_undefined() -> None:
    for value in (0, 1):
        metric = AUPRO()
        metric.update((torch.rand(2, 1, 5, 5), torch.full((2, 1, 5, 5), value)))
        assert math.isnan(metric.compute())
    froc = FROC()
    froc.update((spots((3, 2.0)), spots()))
    assert math.isnan(froc.compute()["froc"])
