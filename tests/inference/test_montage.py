"""Montages: written, not blank, upright, and with the lesion where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcmiad_monai.inference.montage import MontageRow, montage, pick_slices

SHAPE = (40, 50, 9)


def make_row(*, hot: bool = True, mask: bool = True) -> MontageRow:
    """A disc with, optionally, a heat spot at the front and to the patient's right."""
    x, y, _ = np.ogrid[:40, :50, :9]
    image = np.where((x - 20) ** 2 / 300 + (y - 25) ** 2 / 480 < 1, 100.0, 0.0) + np.zeros(SHAPE)
    spot = ((x - 12) ** 2 + (y - 14) ** 2 < 25) & np.ones(SHAPE, bool)
    heatmap = np.where(spot, 6.0 if hot else 0.0, 0.1)
    options: dict[str, Any] = {"score": 3.0, "zooms": (1.8, 1.8, 5.0)}
    options["mask"] = spot.astype(np.uint8) if mask else None
    return MontageRow(image, heatmap, 4, "case_a", 2.0, **options)


def coloured(path: Path) -> np.ndarray:
    """Pixels of a picture whose colour is far from grey."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return pixels.max(axis=2) - pixels.min(axis=2) > 60


def test_heat_alone_is_coloured_upright_and_radiological(tmp_path: Path) -> None:
    hot = coloured(montage([make_row(mask=False)], tmp_path / "hot.png"))
    cold = coloured(montage([make_row(mask=False, hot=False)], tmp_path / "cold.png"))
    assert not (cold & ~hot).any()
    rows, columns = np.nonzero(hot & ~cold)
    assert len(rows) > 300
    image = np.asarray(Image.open(tmp_path / "cold.png").convert("L")).astype(int)
    # The disc of the second column: the widest bright region right of the middle of the figure.
    bright = image > 200
    disc = np.argwhere(bright[:, : bright.shape[1] * 85 // 100])
    second = disc[disc[:, 1] > np.median(disc[:, 1])]
    # Low y is the front and stands on top, low x is the patient's right and stands on the left.
    assert rows.mean() < second[:, 0].mean()
    assert columns.mean() < second[:, 1].mean()


def test_third_column_only_with_masks(tmp_path: Path) -> None:
    widths = [
        Image.open(montage([make_row(mask=mask)], tmp_path / f"{mask}.png")).width
        for mask in (True, False)
    ]
    assert widths[0] > widths[1] * 1.2


def test_rows_of_every_kind_are_drawn(tmp_path: Path) -> None:
    empty, base = np.zeros(SHAPE), make_row(mask=False)
    side = MontageRow(base.image, base.heatmap, 20, "side", 2.0, zooms=(1.8, 1.8, 5.0), axis=0)
    rows = [make_row(), base, side, MontageRow(empty, empty, 0, "empty", 1.0, mask=empty)]
    path = montage(rows, tmp_path / "new" / "m.png", title="Four")
    assert np.asarray(Image.open(path).convert("L")).std() > 20


def test_montage_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    image = np.ones(SHAPE)
    with pytest.raises(ValueError, match="0 rows"):
        montage([], tmp_path / "m.png")
    with pytest.raises(ValueError, match="one shape"):
        MontageRow(image, np.ones((4, 4, 4)), 0, "a", 1.0)
    with pytest.raises(ValueError, match="slice 9 along axis 2"):
        MontageRow(image, image, 9, "a", 1.0)
    with pytest.raises(ValueError, match="above 0"):
        MontageRow(image, image, 0, "a", 0.0)


def test_pick_slices_takes_the_strongest_apart_from_each_other() -> None:
    volume = np.zeros((4, 4, 20))
    volume[..., 5], volume[..., 6], volume[..., 15] = 9, 8, 3
    assert pick_slices(volume, 2) == [5, 15]
    assert pick_slices(volume, 2, gap=1) == [5, 6]
    assert pick_slices(volume.transpose(2, 0, 1), 2, axis=0) == [5, 15]


def test_pick_slices_of_an_empty_volume_is_the_middle_and_never_too_many() -> None:
    assert pick_slices(np.zeros((3, 3, 9)), 1) == [4]
    assert pick_slices(np.zeros((3, 3, 3)), 8) == [0, 1, 2]
    with pytest.raises(ValueError, match="at least one"):
        pick_slices(np.zeros((3, 3, 3)), 0)
