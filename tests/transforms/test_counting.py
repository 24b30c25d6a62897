"""Counting in parts gives what NumPy gives at once, in whatever order the memory is."""

from __future__ import annotations

import numpy as np
import pytest

from mcmiad_monai.transforms.counting import PART, counts, look_up


@pytest.mark.parametrize("shape", [(0, 3), (PART,), (67, 53, 41)])
@pytest.mark.parametrize("kind", ["u2", "i4"])
def test_parts_agree_with_numpy(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, shape).astype(kind)
    assert values.size == 0 or values.size >= PART
    table = rng.random(10) < 0.5
    for same in (values, values.T, np.asfortranarray(values), values[::-1]):
        np.testing.assert_array_equal(counts(same, 10), np.bincount(same.ravel(), minlength=10))
        np.testing.assert_array_equal(look_up(table, same), table[same])
    assert look_up(table, values).dtype == bool
