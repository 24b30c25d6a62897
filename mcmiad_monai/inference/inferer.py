"""From a normalised volume to a heatmap volume, slice batch by slice batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor
from tqdm import tqdm

from mcmiad_monai.calibration import heat_unit
from mcmiad_monai.networks.score import AnomalyScore, foreground_of
from mcmiad_monai.runtime.cpu import slices_at_once
from mcmiad_monai.transforms import (
    MIN_FOREGROUND,
    as_heatmap,
    insert_slices,
    restore_maps,
    select_slices,
    slice_batch,
)
from mcmiad_monai.transforms.metadata import MODALITY
from mcmiad_monai.transforms.slices import check_context

#: Key of a heatmap's meta dictionary that holds its slice scores, NaN where a slice was skipped.
SLICE_SCORES = "slice_scores"


class SliceHeatmapInferer(Inferer):
    """Run a slice network over volumes of any size.

    A slice is resized to the network grid, scored, and its map restored to the slice's own grid.
    The heatmap is **zero** outside the foreground (wherever the normalised volume is zero), at the
    edge of the field of view beyond it, in slices with less than ``min_foreground`` of foreground
    and in slices outside ``slice_range``. Beyond the volume and its heatmap, memory is that of one
    batch of slices.

    Parameters
    ----------
    axis : int
        Slice axis of the canonical volume (``modality.slice_axis``).
    size : int
        Side of the network grid in pixels.
    batch_size : int, optional
        Slices in one call of the network; by default what suits it, see
        :func:`~mcmiad_monai.runtime.cpu.slices_at_once`.
    min_foreground : float
        Share of a slice's pixels that must be foreground for it to be looked at.
    slice_range : (float, float)
        Share of the slices to look at.
    context : {1, 3}
        3 shows the network each slice between its neighbours, whether these are looked at or not.
    calibration : mapping, optional
        Of the package; brings the maps of a unified model into the unit of the study's modality.
    score : callable, optional
        Maps (B, 1, H, W), foreground (B, 1, H, W) → slice scores (B,); the paper's Eq. 7 if left.
    progress : bool
        Show a progress bar over the slice batches.

    Notes
    -----
    ``inferer(volume, network)`` takes volumes (B, 1, X, Y, Z), or (B, 3, X, Y, Z) of colours, and
    returns heatmaps (B, 1, X, Y, Z), float32, with the volume's affine and applied operations, so
    that MONAI's ``Invertd`` restores the source grid. ``meta["slice_scores"]`` is (B, n), NaN in
    skipped slices.
    """

    def __init__(
        self,
        *,
        axis: int = 2,
        size: int = 224,
        batch_size: int | None = None,
        min_foreground: float = MIN_FOREGROUND,
        slice_range: Sequence[float] = (0.0, 1.0),
        context: int = 1,
        calibration: Mapping[str, Any] | None = None,
        score: Callable[[Tensor, Tensor], Tensor] | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if axis not in (0, 1, 2):
            raise ValueError(f"slice axis {axis} must be 0, 1 or 2.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1.")
        self.axis, self.size, self.batch_size = axis, size, batch_size
        check_context(context, colours=False)
        self.min_foreground, self.context = min_foreground, context
        self.slice_range = (float(slice_range[0]), float(slice_range[1]))
        self.calibration = dict(calibration or {})
        self.score = AnomalyScore().slice_score if score is None else score
        self.progress = progress

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> MetaTensor:
        """Heatmaps of a batch of volumes.

        Raises
        ------
        TypeError
            If the input is a plain tensor: its geometry would be lost without a word.
        ValueError
            If the input is not (B, 1, X, Y, Z), or the network gives NaN or infinity.
        """
        if not isinstance(inputs, MetaTensor):
            raise TypeError(
                f"{type(inputs).__name__} has no geometry; a MetaTensor is needed, so that the "
                "heatmap can go back to the study's own grid. Load the volume with LoadVolumed."
            )
        if inputs.ndim != 5 or inputs.shape[1] not in (1, 3):
            raise ValueError(
                f"found volumes of shape {tuple(inputs.shape)}; expected (B, 1, X, Y, Z), one "
                "channel. Add the batch dimension or select one channel."
            )
        heat = torch.zeros((len(inputs), 1, *inputs.shape[2:]), dtype=torch.float32)
        scores = torch.full((inputs.shape[0], inputs.shape[2 + self.axis]), torch.nan)
        for b in range(inputs.shape[0]):
            self._one_volume(cast(MetaTensor, inputs[b]), network, heat[b], scores[b], args, kwargs)
        heatmap = as_heatmap(heat, like=inputs)
        heatmap.meta[SLICE_SCORES] = scores
        return heatmap

    @torch.inference_mode()
    def _one_volume(  # noqa: PLR0917 - private, one call
        self,
        volume: MetaTensor,
        network: Callable[..., Tensor],
        heat: Tensor,
        scores: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Fill the heatmap (1, X, Y, Z) and the slice scores (n,) of one volume in place."""
        device = next((p.device for p in getattr(network, "parameters", tuple)()), volume.device)
        plain = volume.as_tensor()
        chosen = select_slices(
            volume,
            axis=self.axis,
            slice_range=self.slice_range,
            min_foreground=self.min_foreground,
        )
        x, y = [n for a, n in enumerate(volume.shape[1:]) if a != self.axis]
        unit = heat_unit(self.calibration, volume.meta.get(MODALITY))
        count = self.batch_size or slices_at_once(network, device)
        starts = range(0, len(chosen), count)
        for start in tqdm(starts, "slices", unit=" batches", disable=not self.progress):
            indices = chosen[start : start + count]
            images = slice_batch(
                volume, indices, axis=self.axis, size=self.size, context=self.context
            )  # (n, 1 or 3, S, S)
            maps = network(images.to(device), *args, **kwargs).float()  # (n, 1, S, S)
            inside = foreground_of(images).to(device)
            maps = maps / unit * inside
            found = self.score(maps, inside).float().cpu()
            _require_finite(maps, found)
            scores[indices] = found
            planes = restore_maps(maps.cpu(), plane_shape=(x, y))  # (n, X, Y)
            insert_slices(heat, planes, indices, axis=self.axis)
        heat.mul_(plain[:1].to(heat.device) > 0)  # exact at full resolution


def _require_finite(maps: Tensor, scores: Tensor) -> None:
    """Refuse what has no verdict: NaN is above no threshold."""
    if bool(torch.isfinite(scores).all()) and bool(torch.isfinite(maps).all()):
        return
    raise ValueError(
        "the network gave NaN or infinity, and numbers are needed: there is no heatmap and no "
        "verdict. The model file may be damaged: check it with mcmiad verify BUNDLE. If it is "
        "not, compute with engine torch, in float32, on the CPU."
    )
