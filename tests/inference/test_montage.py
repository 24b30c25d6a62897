"""Montages: written, not blank, upright, and with the lesion where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcmiad_monai.inference.montage import MontageRow, montage, pick_slices

SHAPE = (40, 50, 9)


def make_row(*, hot: bool = True, mask: bool = True, index: int = 4) -> MontageRow:
    """A disc with, optionally, a heat spot at the front and to the patient's right."""
    x, y, _ = np.ogrid[:40, :50, :9]
    image = np.where((x - 20) ** 2 / 300 + (y - 25) ** 2 / 480 < 1, 100.0, 0.0) + np.zeros(SHAPE)
    spot = ((x - 12) ** 2 + (y - 14) ** 2 < 25) & np.ones(SHAPE, bool)
    heatmap = np.where(spot, 6.0 if hot else 0.0, 0.1)
    return MontageRow(
        image,
        heatmap,
        index,
        "case_a",
        2.0,
        mask=spot.astype(np.uint8) if mask else None,
        score=3.0,
        zooms=(1.8, 1.8, 5.0),
    )


def coloured(path: Path) -> np.ndarray:
    """Pixels of a picture whose colour is far from grey."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return pixels.max(axis=2) - pixels.min(axis=2) > 60


def test_montage_is_written_and_not_blank(tmp_path: Path) -> None:
    path = montage([make_row(), make_row(hot=False)], tmp_path / "new" / "m.png", title="Two")
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200
    assert pixels.std() > 20


def test_hot_heatmap_is_drawn_and_cold_is_transparent(tmp_path: Path) -> None:
    hot = coloured(montage([make_row(mask=False)], tmp_path / "hot.png"))
    cold = coloured(montage([make_row(mask=False, hot=False)], tmp_path / "cold.png"))
    assert hot.shape == cold.shape
    added = hot & ~cold
    assert added.sum() > 300
    assert not (cold & ~hot).any()


def test_slice_is_upright_and_radiological(tmp_path: Path) -> None:
    hot = coloured(montage([make_row(mask=False)], tmp_path / "hot.png"))
    cold = coloured(montage([make_row(mask=False, hot=False)], tmp_path / "cold.png"))
    rows, columns = np.nonzero(hot & ~cold)
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


def test_rows_with_and_without_mask_and_empty_image_are_drawn(tmp_path: Path) -> None:
    empty = np.zeros(SHAPE)
    rows = [make_row(), make_row(mask=False), MontageRow(empty, empty, 0, "empty", 1.0, mask=empty)]
    assert montage(rows, tmp_path / "m.png").stat().st_size > 5000


def test_other_slice_axis_keeps_the_aspect_of_voxels(tmp_path: Path) -> None:
    base = make_row(mask=False)
    row = MontageRow(base.image, base.heatmap, 20, "side", 2.0, zooms=(1.8, 1.8, 5.0), axis=0)
    assert montage([row], tmp_path / "m.png").is_file()


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
