"""Montages of slices, heatmaps and true lesions, for reports and demonstrations.

Everything here takes plain arrays (X, Y, Z) in the canonical orientation ``"LPS"`` and shows
slices upright in the radiological convention: rows go to posterior, columns to patient left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcmiad_monai.files.writing import replace_atomically
from mcmiad_monai.inference.blend import COLOUR_MAP, DEFAULT_SCALE, opacity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Grey window of the image: percentiles of its foreground.
WINDOW_PERCENTILES = (0.5, 99.5)
OUTLINE_COLOUR = "#3ddbd9"
BACKGROUND = "#101014"
TEXT = "#e8e8ea"
CELL_INCHES = 2.5


@dataclass(frozen=True)
class MontageRow:
    """One line of a montage: a slice of a case."""

    image: NDArray[Any]  # (X, Y, Z)
    heatmap: NDArray[Any]  # (X, Y, Z), in units of the network
    index: int  # slice along the axis
    title: str  # name of the case
    threshold: float  # heatmap value that calibration calls anomalous
    mask: NDArray[Any] | None = None  # (X, Y, Z), true lesion, above 0
    score: float | None = None  # of the case or slice, printed under its name
    zooms: tuple[float, float, float] = (1.0, 1.0, 1.0)  # voxel size in mm
    axis: int = 2  # slice axis
    oriented: bool = True  # whether it is known which side is which; it is not for a picture

    def __post_init__(self) -> None:
        """Check that the arrays are one grid."""
        shapes = {"image": self.image.shape, "heatmap": self.heatmap.shape}
        if self.mask is not None:
            shapes["mask"] = self.mask.shape
        if len(set(shapes.values())) > 1 or self.image.ndim != 3:
            raise ValueError(f"{self.title}: {shapes} are needed to be one shape (X, Y, Z).")
        if not 0 <= self.index < self.image.shape[self.axis]:
            raise ValueError(
                f"{self.title}: slice {self.index} along axis {self.axis} does not exist; there "
                f"are {self.image.shape[self.axis]}."
            )
        if not self.threshold > 0:
            raise ValueError(f"{self.title}: threshold is {self.threshold}; it must be above 0.")


def pick_slices(volume: NDArray[Any], count: int, *, axis: int = 2, gap: int = 2) -> list[int]:
    """Choose the slices that show most: of a heatmap, a lesion mask or a foreground.

    Parameters
    ----------
    volume : (X, Y, Z) array
        Not negative. Slices are ranked by their sum; those of a sum of 0 come last, from the
        middle of the volume outwards.
    count : int
        How many; fewer come back if there are not so many slices.
    gap : int
        Least distance between two chosen slices, given up where it leaves too few.

    Returns
    -------
    list of int
        Slice indices in rising order.
    """
    if volume.ndim != 3 or count < 1:
        raise ValueError(
            f"got a volume of shape {volume.shape} and count {count}; a volume (X, Y, Z) and at "
            "least one slice are needed."
        )
    others = tuple(i for i in range(3) if i != axis)
    sums = np.asarray(volume, np.float64).sum(axis=others)  # (slices,)
    from_middle = np.abs(np.arange(sums.size) - (sums.size - 1) / 2)
    ranked = [int(i) for i in np.lexsort((from_middle, -sums))]
    chosen: list[int] = []
    for least in (gap, 1):
        for index in ranked:
            apart = all(abs(index - other) >= least for other in chosen)
            if len(chosen) < count and apart:
                chosen.append(index)
    return sorted(chosen)


def montage(
    rows: Sequence[MontageRow],
    path: str | Path,
    *,
    title: str | None = None,
    scale: float = DEFAULT_SCALE,
    dpi: int = 130,
) -> Path:
    """Write a picture with one line a slice: image, heatmap over the image, true lesion.

    The colour bar is in units of the threshold, so that 1 means anomalous in every case. The
    heatmap is clear below 0.4 and solid from 1 on; the threshold is drawn as a thin line. The
    third column is left out if no row has a mask.

    Parameters
    ----------
    rows : sequence of MontageRow
        Slices, from top to bottom.
    path : str or Path
        File to write; the format follows from the suffix, ``.png`` as a rule.
    title : str, optional
        Heading.
    scale : float
        End of the colour bar in thresholds, above 1.

    Returns
    -------
    Path
        The file written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows or scale <= 1:
        raise ValueError(f"got {len(rows)} rows and scale {scale}; at least 1 row, scale above 1.")
    path = Path(path)
    columns = 3 if any(row.mask is not None for row in rows) else 2
    figure = Figure(
        figsize=(columns * CELL_INCHES + 1.9, len(rows) * CELL_INCHES * _tallest(rows) + 0.9),
        dpi=dpi,
        facecolor=BACKGROUND,
        layout="constrained",
    )
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        _draw_row(line, row, scale)
    for cell, name in zip(axes[0], ("image", "anomaly heatmap", "true lesion"), strict=False):
        cell.set_title(name, color=TEXT, fontsize=10, pad=6)
    _colour_bar(figure, axes, scale)
    if title is not None:
        figure.suptitle(title, color=TEXT, fontsize=12)
    replace_atomically(path, lambda partial: figure.savefig(partial, facecolor=BACKGROUND))
    return path


def _slice(volume: NDArray[Any], row: MontageRow) -> NDArray[Any]:
    """The row's slice of a volume, upright: (rows = y, columns = x)."""
    return np.asarray(np.take(volume, row.index, axis=row.axis)).T


def _zooms(row: MontageRow) -> tuple[float, float]:
    """Voxel size of the row's slice in mm: across (x) and down (y)."""
    across, down = (zoom for i, zoom in enumerate(row.zooms) if i != row.axis)
    return across, down


def _tallest(rows: Sequence[MontageRow]) -> float:
    """Height of the tallest slice in units of its width, within what fits a page."""
    ratios = []
    for row in rows:
        (height, width), (across, down) = _slice(row.image, row).shape, _zooms(row)
        ratios.append(height * down / (width * across))
    return float(np.clip(max(ratios), 0.5, 1.6))


def _draw_row(line: NDArray[Any], row: MontageRow, scale: float) -> None:
    """Draw one slice into the cells of its line."""
    across, down = _zooms(row)
    grey = _window(_slice(row.image, row), row.image)
    for cell in line:
        cell.set(facecolor="black", xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
        cell.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect=down / across)
    relative = _slice(row.heatmap, row) / row.threshold
    heat: dict[str, Any] = {
        "cmap": COLOUR_MAP,
        "vmin": 0,
        "vmax": scale,
        "alpha": opacity(relative),
    }
    line[1].imshow(relative, **heat, aspect=down / across)
    _outline(line[1], relative, 1.0, TEXT, 0.7)
    if len(line) == 3:
        _draw_truth(line[2], row)
    if row.axis == 2 and row.oriented:  # the left of the picture is the patient's right
        for x, y, side in ((0.04, 0.5, "R"), (0.96, 0.5, "L"), (0.5, 0.95, "A"), (0.5, 0.05, "P")):
            _write(line[0], x, y, side, size=7)
    caption = row.title if row.image.shape[row.axis] == 1 else f"{row.title}\nslice {row.index}"
    if row.score is not None:
        caption += f"\nscore {row.score:.2f}"
    line[0].set_ylabel(
        caption, color=TEXT, fontsize=8.5, rotation=0, ha="right", va="center", labelpad=8
    )


def _draw_truth(cell: Axes, row: MontageRow) -> None:
    """Outline the true lesion in a cell, or say that there is none."""
    note = "no mask"
    if row.mask is not None:
        lesion = _slice(row.mask, row) > 0
        _outline(cell, lesion, 0.5, OUTLINE_COLOUR, 1.3)
        note = "" if lesion.any() else "no lesion"
    _write(cell, 0.5, 0.05, note, size=8)


def _window(plane: NDArray[Any], volume: NDArray[Any]) -> NDArray[np.float64]:
    """Scale a slice to 0..1 by percentiles of the whole volume's foreground."""
    foreground = volume[volume > 0]
    if foreground.size == 0:
        return np.zeros(plane.shape)
    low, high = np.percentile(foreground, WINDOW_PERCENTILES)
    low = min(float(low), 0.0) if volume.min() >= 0 else float(low)
    return np.clip((plane - low) / max(float(high) - low, 1e-12), 0.0, 1.0)


def _outline(cell: Axes, plane: NDArray[Any], level: float, colour: str, width: float) -> None:
    """Draw the line at which a slice crosses a level, if it does."""
    if plane.min() < level <= plane.max() and min(plane.shape) > 1:
        cell.contour(plane.astype(np.float64), [level], colors=[colour], linewidths=[width])


def _write(cell: Axes, x: float, y: float, text: str, *, size: float) -> None:
    """Write in a cell, at a share of its width and height, legible on any grey."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=1.5, foreground="black")]
    label = cell.text(x, y, text, color=TEXT, fontsize=size, path_effects=rim)
    label.set(ha="center", va="center", transform=cell.transAxes)


def _colour_bar(figure: Figure, axes: NDArray[Any], scale: float) -> None:
    """One colour bar for all rows, in units of the threshold, with a mark at 1."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mapped = ScalarMappable(Normalize(0, scale), COLOUR_MAP)
    bar = figure.colorbar(
        mapped, ax=axes, shrink=0.6 if len(axes) > 1 else 0.9, aspect=28, pad=0.02, extend="max"
    )
    bar.set_label("heatmap / threshold", color=TEXT, fontsize=9)
    bar.ax.tick_params(colors=TEXT, labelsize=8)
    bar.ax.axhline(1.0, color=TEXT, linewidth=1.2)
    bar.outline.set_visible(False)
