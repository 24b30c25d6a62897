"""From files on disk to a montage: image, heatmap and, where there is one, the true lesion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.data import MetaTensor

from mcmiad_monai.inference.montage import MontageRow, pick_slices
from mcmiad_monai.modality import Modality, get_modality
from mcmiad_monai.transforms import CanonicalOrientation, load_heatmap, load_mask, load_volume
from mcmiad_monai.transforms.intensity import CT_WINDOW
from mcmiad_monai.transforms.metadata import PICTURE


class OverlayError(ValueError):
    """Image, heatmap and mask do not lie on one grid."""


def overlay_rows(
    image: str | Path,
    heatmap: str | Path,
    *,
    mask: str | Path | None = None,
    title: str | None = None,
    count: int = 1,
    modality: str | Modality = "brain_mri",
) -> list[MontageRow]:
    """Rows of a montage for one study, on the slices with the largest lesion, or the most heat.

    Parameters
    ----------
    image, heatmap, mask : path
        On one grid, as the inference writes them.
    title : str, optional
        Name shown; that of the image if left.
    count : int
        Slices to show.
    modality : str or Modality
        Decides orientation and slice axis.

    Raises
    ------
    OverlayError
        If the grids differ: an overlay would put the heat in the wrong place.
    """
    kind = get_modality(modality) if isinstance(modality, str) else modality
    study, heat = load_volume(image), load_heatmap(heatmap)
    truth = None if mask is None else load_mask(mask)
    for name, other in (("heatmap", heat), ("mask", truth)):
        if other is not None:
            _require_one_grid(study, other, name, Path(image))
    turn = CanonicalOrientation(kind.axcodes)
    canonical = turn(study)
    image_array, heat_array = canonical.numpy()[0], turn(heat).numpy()[0]
    if kind.intensity == "ct" and not study.meta.get(PICTURE):
        # in the window that the network sees, from 0: percentiles of all Hounsfield units above 0
        # would leave soft tissue dark
        image_array = np.clip(image_array, *CT_WINDOW) - CT_WINDOW[0]
    mask_array = None if truth is None else turn(truth).numpy()[0]
    spacing = np.linalg.norm(canonical.affine.numpy()[:3, :3], axis=0)
    shown = heat_array
    if mask_array is not None and mask_array.any():
        # among the slices that the inferer looked at, if the lesion reaches any of them
        looked_at = heat_array.any(tuple({0, 1, 2} - {kind.slice_axis}), keepdims=True)
        shown = mask_array * looked_at if (mask_array * looked_at).any() else mask_array
    return [
        MontageRow(
            image=image_array,
            heatmap=heat_array,
            index=index,
            title=title or Path(image).name,
            threshold=1.0,  # heatmaps are in units of the calibrated threshold
            mask=mask_array,
            zooms=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
            axis=kind.slice_axis,
        )
        for index in pick_slices(np.maximum(shown, 0), count, axis=kind.slice_axis)
    ]


def _require_one_grid(image: MetaTensor, other: MetaTensor, name: str, path: Path) -> None:
    same = image.shape == other.shape and np.allclose(image.affine, other.affine, atol=1e-3)
    if not same:
        raise OverlayError(
            f"the {name} ({tuple(other.shape[1:])}) does not lie on the grid of {path} "
            f"({tuple(image.shape[1:])}); pass the {name} that was made from this image."
        )
