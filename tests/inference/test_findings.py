"""Volume of the mask, and where the heat is largest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mcmiad_monai.inference.outputs import anomaly_mask, findings
from mcmiad_monai.transforms.metadata import PICTURE


def heatmap(**meta: object) -> MetaTensor:
    """5 x 6 x 7 voxels of 2 x 3 x 4 mm, turned about z, with three above the threshold."""
    heat = torch.zeros(1, 5, 6, 7)
    heat[0, 1, 2, 3], heat[0, 1, 2, 4], heat[0, 4, 5, 6] = 1.5, 2.5, 1.25
    affine = np.array([[0, -3, 0, 10], [2, 0, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]], dtype=float)
    return MetaTensor(heat, affine=torch.as_tensor(affine), meta=dict(meta))


def test_volume_and_place_are_in_the_units_of_the_affine() -> None:
    heat = heatmap()
    found = findings(heat, anomaly_mask(heat))
    assert found["anomaly_ml"] == pytest.approx(3 * 2 * 3 * 4 / 1000)
    assert found["hottest"] == 2.5
    assert found["hottest_voxel"] == [1, 2, 4]
    assert found["hottest_mm"] == pytest.approx([10 - 3 * 2, -20 + 2 * 1, 30 + 4 * 4])


def test_no_heat_has_no_place() -> None:
    heat = heatmap()
    heat.zero_()
    found = findings(heat, anomaly_mask(heat))
    assert found == {"anomaly_ml": 0, "hottest": None, "hottest_voxel": None, "hottest_mm": None}


def test_pixels_of_a_picture_have_no_size() -> None:
    heat = heatmap(**{PICTURE: True})
    found = findings(heat, anomaly_mask(heat))
    assert (found["anomaly_ml"], found["hottest_mm"]) == (None, None)
    assert found["hottest_voxel"] == [1, 2, 4]
