"""A common field of view: a square around the foreground; voxels are never resampled."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys
from numpy.typing import NDArray

from mcmiad_monai.transforms.metadata import check_volume, plain, with_metadata_of
from mcmiad_monai.transforms.slices import foreground_slices

MARGIN = 0.06
"""Background on each side of the foreground, as a share of its longer side."""

ROW_SHARE = 0.02
"""A row or column with less foreground than this share of the fullest one is no part of the body:
a round head loses 1 % of its radius, which the margin gives back, and specks do not count."""


AnyVolume = TypeVar("AnyVolume", bound=torch.Tensor)


class Window(NamedTuple):
    """A box of voxels, which may reach beyond the volume.

    Attributes
    ----------
    start, size : (int, int, int)
        First voxel along each axis, negative before the volume, and voxels along each axis.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]


class FieldOfView(InvertibleTransform):
    """Crop a normalised volume to a square around its foreground, in the plane of its slices.

    The square is one in millimetres, so that the network sees no anatomy squeezed, and the same
    for all slices of a volume, along whose axis nothing is cut. Where it reaches beyond the image,
    background (0) is added. A volume without background stays as it is, and so does one that has
    not even one slice worth looking at: a crop would turn its specks into a body.

    The inverse gives the grid and the affine of before, and 0 outside the square.

    Parameters
    ----------
    axis : {0, 1, 2}
        Slice axis.
    margin : float
        Background on each side, as a share of the longer side of the foreground.
    """

    def __init__(self, axis: int = 2, margin: float = MARGIN) -> None:
        self.axis, self.margin = axis, margin

    def __call__(self, volume: MetaTensor) -> MetaTensor:
        """Crop a normalised volume (1, X, Y, Z), or one of colours (3, X, Y, Z).

        Raises
        ------
        ValueError
            If it has another shape.
        """
        return self.cut(volume, self.window(volume))

    def window(self, volume: MetaTensor) -> Window:
        """Find the square around the foreground, which is what is above 0 in any channel."""
        check_volume(volume)
        inside = (plain(volume) > 0).any(0)  # (X, Y, Z)
        shape = [int(n) for n in inside.shape]
        start, size = [0, 0, 0], list(shape)
        if not inside.all() and foreground_slices(volume, axis=self.axis):
            in_plane = [a for a in range(3) if a != self.axis]
            zooms = np.linalg.norm(volume.affine.cpu().numpy()[:3, :3], axis=0)
            spans = {a: _span(inside, a) for a in in_plane}
            side = max((last - first) * zooms[a] for a, (first, last) in spans.items())
            side *= 1 + 2 * self.margin  # mm
            for a, (first, last) in spans.items():
                size[a] = max(round(side / zooms[a]), 1)
                start[a] = (first + last - size[a]) // 2
        return Window(tuple(start), tuple(size))

    def cut(self, volume: MetaTensor, window: Window, *, keep_outside: bool = False) -> MetaTensor:
        """Cut a window out of a volume (C, X, Y, Z).

        Parameters
        ----------
        keep_outside : bool
            Remember the voxels outside the window that are not 0, and give them back in the
            inverse. This is for masks, in which they are few: no lesion may get lost.
        """
        values = plain(volume)
        out = with_metadata_of(_cut(values, window), volume)
        affine = volume.affine.cpu().numpy().astype(np.float64)
        out.affine = torch.from_numpy(_moved(affine, window.start))
        extra: dict[str, Any] = {**window._asdict(), "affine": affine.copy()}
        if keep_outside:
            rest = values.clone()
            _part(rest, window)[...] = 0
            places = rest.nonzero()
            extra["outside"] = (places.cpu().numpy(), rest[tuple(places.T)].cpu().numpy())
        self.push_transform(out, orig_size=tuple(volume.shape[1:]), extra_info=extra)
        return out

    def inverse(self, volume: MetaTensor) -> MetaTensor:
        """Put a cropped volume (C, X, Y, Z), or a heatmap of one, back on the grid of before.

        Raises
        ------
        ValueError
            If it does not have the size of the crop.
        """
        return _put_back(volume, self.pop_transform(volume))


class FieldOfViewd(MapTransform, InvertibleTransform):
    """`FieldOfView` of a normalised volume, and the same window of masks on its grid.

    Parameters
    ----------
    keys : KeysCollection
        Key of the normalised volume, in which the foreground is looked for, then those of masks.
    axis : {0, 1, 2}
        Slice axis.
    margin : float
        Background on each side, as a share of the longer side of the foreground.
    allow_missing_keys : bool
        Whether a missing mask is passed over.
    """

    def __init__(
        self,
        keys: KeysCollection,
        axis: int = 2,
        *,
        margin: float = MARGIN,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.view = FieldOfView(axis, margin)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop every key."""
        d = dict(data)
        first = self.keys[0]
        window = self.view.window(d[first])
        for key in self.key_iterator(d):
            d[key] = self.view.cut(d[key], window, keep_outside=key != first)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put every key back on the grid of before."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.view.inverse(d[key])
        return d


def on_whole_grid(volume: AnyVolume) -> AnyVolume:
    """A volume, mask or heatmap (C, X, Y, Z) without its crop; itself if it has none.

    In contrast to the inverse, this needs no transform: the volume knows how it was cropped.
    """
    if not isinstance(volume, MetaTensor) or not volume.applied_operations:
        return volume
    operations = volume.applied_operations
    if operations[-1].get(TraceKeys.CLASS_NAME) != FieldOfView.__name__:
        return volume
    out = _put_back(volume, operations[-1])
    out.applied_operations = out.applied_operations[:-1]
    return cast(AnyVolume, out)


def _span(inside: torch.Tensor, axis: int) -> tuple[int, int]:
    """First row of the body along an axis, and the one behind its last."""
    others = tuple(a for a in range(3) if a != axis)
    counts = inside.sum(others)  # (n,)
    rows = (counts >= ROW_SHARE * counts.max()).nonzero().flatten()
    return int(rows[0]), int(rows[-1]) + 1


def _part(values: torch.Tensor, window: Window) -> torch.Tensor:
    """The voxels of a volume (C, X, Y, Z) that lie in a window, a view."""
    bounds = zip(window.start, window.size, values.shape[1:], strict=True)
    x, y, z = (slice(max(start, 0), max(min(start + n, whole), 0)) for start, n, whole in bounds)
    return values[:, x, y, z]


def _cut(values: torch.Tensor, window: Window) -> torch.Tensor:
    """A window of a volume (C, X, Y, Z); 0 where it reaches beyond."""
    out = values.new_zeros((values.shape[0], *window.size))
    whole = Window(_opposite(window.start), tuple(values.shape[1:]))
    _part(out, whole)[...] = _part(values, window)
    return out


def _opposite(start: Sequence[int]) -> tuple[int, ...]:
    """First voxel of a volume, counted in a window of it that starts there."""
    return tuple(-n for n in start)


def _put_back(volume: MetaTensor, operation: Mapping[Any, Any]) -> MetaTensor:
    """Undo a crop; the trace is left as it is."""
    info, shape = operation[TraceKeys.EXTRA_INFO], tuple(operation[TraceKeys.ORIG_SIZE])
    if tuple(volume.shape[1:]) != tuple(info["size"]):
        raise ValueError(
            f"a volume of shape {tuple(volume.shape)} cannot go back from a crop to "
            f"{tuple(info['size'])} voxels; give one on the grid of the crop."
        )
    whole = Window(_opposite(info["start"]), shape)
    out = with_metadata_of(_cut(plain(volume), whole), volume)
    if "outside" in info:
        places, values = (torch.from_numpy(np.asarray(part)) for part in info["outside"])
        plain(out)[tuple(places.T)] = values.to(out.dtype)
    out.affine = torch.from_numpy(np.array(info["affine"], dtype=np.float64))
    return out


def _moved(affine: NDArray[np.float64], start: Sequence[int]) -> NDArray[np.float64]:
    """Affine of a grid whose first voxel is another one."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ start
    return moved
