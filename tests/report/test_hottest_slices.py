"""Slices of the montage of a study page."""

from __future__ import annotations

import numpy as np

from mcmiad_monai.report.study import MONTAGE_SLICES, hottest_slices


def test_only_slices_that_were_looked_at_are_shown_the_hottest_first() -> None:
    heat = np.zeros((4, 4, 20))
    heat[..., 5:10] = 0.5
    heat[1, 1, 9] = 3.0
    chosen = hottest_slices(heat, 2)
    assert 9 in chosen
    assert set(chosen) <= set(range(5, 10))
    heat[..., 5:20] = 0.5
    assert len(hottest_slices(heat, 2)) == MONTAGE_SLICES


def test_study_without_heat_shows_its_middle() -> None:
    assert hottest_slices(np.zeros((4, 9, 4)), 1) == [4]
