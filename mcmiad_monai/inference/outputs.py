"""The files of a study: heatmap, mask and scores, each written whole or not at all."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged
from torch import Tensor

from mcmiad_monai.calibration import Calibration, calibration_for
from mcmiad_monai.inference.inferer import SLICE_SCORES
from mcmiad_monai.inference.placement import VIEWER_HEATMAP, needs_upright_copy
from mcmiad_monai.inference.settings import HEATMAP_THRESHOLD
from mcmiad_monai.inference.writers import is_picture, write_study
from mcmiad_monai.inference.writes import Writes
from mcmiad_monai.networks.score import volume_score
from mcmiad_monai.transforms import on_whole_grid
from mcmiad_monai.transforms.metadata import INPUT, MODALITY, MODALITY_FROM, PICTURE
from mcmiad_monai.transforms.positions import source_slices

logger = logging.getLogger(__name__)

#: Warning of a study in which no slice had enough foreground: it has no score and no verdict.
NOTHING_LOOKED_AT = "nothing_looked_at"
#: Warning of a study whose median heat is far from that of held-out normals.
OUT_OF_DISTRIBUTION = "out_of_distribution"


class KeepSliceScoresd(MapTransform):
    """Put the heatmap's slice scores under ``slice_scores``: ``Invertd`` renews its metadata."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy the scores (n,) of the canonical slices."""
        result = dict(data)
        heatmap = data[self.first_key(result)]
        result[SLICE_SCORES] = torch.as_tensor(heatmap.meta[SLICE_SCORES]).reshape(-1)
        return result


class AnomalyMaskd(MapTransform):
    """Add ``mask``: uint8, 1 where the heatmap exceeds the calibrated threshold.

    Parameters
    ----------
    keys : str
        The heatmap.
    threshold : float
        In units of the heatmap, where 1.0 is the calibrated pixel threshold.
    """

    def __init__(
        self, keys: KeysCollection = "pred", *, threshold: float = HEATMAP_THRESHOLD
    ) -> None:
        super().__init__(keys)
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Threshold the heatmap.

        Raises
        ------
        TypeError
            If the heatmap is a plain tensor, whose geometry is lost.
        """
        result = dict(data)
        result["mask"] = anomaly_mask(data[self.first_key(result)], self.threshold)
        return result


def anomaly_mask(heatmap: Tensor, threshold: float = HEATMAP_THRESHOLD) -> MetaTensor:
    """Mask (1, X, Y, Z), uint8: 1 where the heatmap exceeds a threshold in its own units.

    Raises
    ------
    TypeError
        If the heatmap is a plain tensor, whose geometry is lost.
    """
    if not isinstance(heatmap, MetaTensor):
        raise TypeError(
            f"the heatmap is a {type(heatmap).__name__} without geometry; a MetaTensor is "
            "needed. Use SliceHeatmapInferer, and Invertd with to_tensor: true."
        )
    mask = MetaTensor((heatmap.as_tensor() > threshold).to(torch.uint8))
    mask.copy_meta_from(heatmap)
    return mask


def study_scores(
    heatmap: MetaTensor,
    slice_scores: Tensor,
    *,
    slice_axis: int,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Scores of a study, ready for JSON.

    Parameters
    ----------
    heatmap : MetaTensor (1, X, Y, Z)
        On the source grid.
    slice_scores : Tensor (n,)
        Of the canonical slices, NaN where a slice was skipped.
    slice_axis : int
        Canonical slice axis of the inferer.
    calibration : Calibration or None
        Gives the thresholds; without one there is no verdict.

    Returns
    -------
    dict
        ``modality``, ``volume_score``, its threshold and verdict, and a list of slices with the
        array index of the source volume. Score and verdict are None if no slice was looked at;
        ``warnings`` says so, and whether ``typical_heat`` is out of the model's ``usual_heat``.
    """
    scores = slice_scores.double()
    looked_at = torch.isfinite(scores)
    volume = float(volume_score(scores[looked_at])) if looked_at.any() else None
    axis, indices = source_slices(heatmap, slice_axis)
    limit = calibration.slice_threshold if calibration else math.inf
    typical, usual = typical_heat(heatmap), calibration.usual_heat if calibration else None
    case = str(heatmap.meta["case"])
    warnings = [] if looked_at.any() else [NOTHING_LOOKED_AT]
    if usual is not None and typical is not None and not usual[0] <= typical <= usual[1]:
        warnings.append(OUT_OF_DISTRIBUTION)
    return {
        "case": case,
        "modality": heatmap.meta.get(MODALITY),
        "modality_from": heatmap.meta.get(MODALITY_FROM),
        "volume_score": volume,
        **verdict("volume", volume, calibration.volume_threshold if calibration else math.inf),
        "warnings": warnings,
        "typical_heat": typical,
        "usual_heat": None if usual is None else list(usual),
        VIEWER_HEATMAP: f"{case}_heatmap_viewer.nii.gz" if needs_upright_copy(heatmap) else None,
        "slice_axis": axis,
        "slices_scored": int(looked_at.sum()),
        "slices_skipped": int((~looked_at).sum()),
        "slices": [
            {"index": indices[k], "score": float(scores[k]), **verdict("slice", scores[k], limit)}
            for k in torch.nonzero(looked_at).flatten().tolist()
        ],
    }


def typical_heat(heatmap: Tensor) -> float | None:
    """Median of a heatmap (1, X, Y, Z) where it is above 0; None where it is 0 everywhere."""
    values = torch.as_tensor(heatmap).as_subclass(Tensor)
    values = values[values > 0]
    return float(values.median()) if values.numel() else None


def verdict(what: str, score: Any, threshold: float) -> dict[str, Any]:
    """Threshold and decision, null where there is no threshold or no score."""
    finite = math.isfinite(threshold)
    return {
        f"{what}_threshold": threshold if finite else None,
        "anomalous": bool(score > threshold) if finite and score is not None else None,
    }


def findings(heatmap: MetaTensor, mask: Tensor) -> dict[str, Any]:
    """How much of a study is anomalous, and where it is hottest.

    Parameters
    ----------
    heatmap, mask : (1, X, Y, Z) tensors
        On the study's grid.

    Returns
    -------
    dict
        ``anomaly_ml``, volume of the mask in millilitres; ``hottest_voxel``, three array indices;
        ``hottest_mm``, its centre in RAS millimetres; ``hottest``, its heat. A picture, whose
        pixels have no size, has neither volume nor place in millimetres; where no heat is above 0,
        there is no hottest voxel. What is not known is None.
    """
    heat = heatmap.as_tensor()[0]
    affine = torch.as_tensor(heatmap.affine, dtype=torch.float64)
    placed = not heatmap.meta.get(PICTURE)
    found: dict[str, Any] = {
        "anomaly_ml": None,
        "hottest": None,
        "hottest_voxel": None,
        "hottest_mm": None,
    }
    if placed:
        voxel_ml = float(torch.linalg.det(affine[:3, :3]).abs()) / 1000
        found["anomaly_ml"] = voxel_ml * int(torch.count_nonzero(mask))
    if float(heat.max()) > 0:
        voxel = [int(n) for n in np.unravel_index(int(heat.argmax()), tuple(heat.shape))]
        found |= {"hottest": float(heat.max()), "hottest_voxel": voxel}
        if placed:
            found["hottest_mm"] = (
                affine[:3, :3] @ torch.tensor(voxel, dtype=torch.float64) + affine[:3, 3]
            ).tolist()
    return found


class SaveStudyd(SaveImaged):
    """Write the files of a study: heatmap, mask, scores, and for a picture an overlay.

    It is a SaveImaged, so that servers which answer with the heatmap themselves leave it out as
    they leave out MONAI's own.

    ============================  ===============================================================
    ``<case>_heatmap.nii.gz``     float32, on the study's own grid
    ``<case>_mask.nii.gz``        uint8, 1 where anomalous
    ``<case>_heatmap_viewer``     ``.nii.gz``, of a study on a sheared grid alone: the heatmap on an
                                  upright one, for viewers
    ``<case>_scores.json``        of the volume and its slices, written last
    ============================  ===============================================================

    A study that was a picture (PNG, TIFF, JPEG, BMP) comes back as pictures of its size:
    ``<case>_heatmap.tiff`` (float32), ``<case>_mask.png`` (0 and 255), and ``<case>_overlay.png``.

    Reads ``slice_scores``, which :class:`KeepSliceScoresd` puts there before ``Invertd``, and keeps
    the scores under ``scores``.

    Parameters
    ----------
    keys : str
        The heatmap on the source grid.
    output_dir : path
        The cohort's folder; each case gets a folder in it.
    slice_axis : int
        Canonical slice axis of the inferer.
    calibration : dict, optional
        Of the packaged detector.
    mask_key, image_key : str
        The mask, and the normalised image that the overlay is laid over.
    pictures : bool
        Write pictures for pictures; NIfTI for all if false.
    made_with : mapping, optional
        What the result depends on beside the study: goes into the scores; see
        `mcmiad_monai.inference.continuing.made_with`.
    writes : Writes, optional
        Writes while the next study is computed, and keeps what fails; by default files are on the
        disk when the transform returns.
    """

    def __init__(  # SaveImaged's own constructor would set up writers that are not used
        self,
        keys: KeysCollection = "pred",
        *,
        output_dir: str | Path,
        slice_axis: int = 2,
        calibration: Mapping[str, Any] | None = None,
        mask_key: str = "mask",
        image_key: str = "image",
        pictures: bool = True,
        made_with: Mapping[str, Any] | None = None,
        writes: Writes | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.output_dir, self.slice_axis = Path(output_dir), slice_axis
        self.calibration = dict(calibration or {})
        self.mask_key, self.image_key, self.pictures = mask_key, image_key, pictures
        self.made_with = None if made_with is None else dict(made_with)
        self.writes = writes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files of one study."""
        result = dict(data)
        heatmap, mask = data[self.first_key(result)], data[self.mask_key]
        modality = heatmap.meta.get(MODALITY)
        scores = study_scores(
            heatmap,
            data[SLICE_SCORES],
            slice_axis=self.slice_axis,
            calibration=calibration_for(self.calibration, modality),
        )
        scores |= findings(heatmap, mask)
        scores |= {"input": heatmap.meta.get(INPUT), "made_with": self.made_with}
        picture = self.pictures and is_picture(heatmap)
        image = on_whole_grid(data[self.image_key]) if picture else None
        work = partial(write_study, self.output_dir, scores, heatmap, mask, image)
        if self.writes is None:
            work()
        else:
            self.writes.submit(scores["case"], work)
        result["scores"] = scores
        return result
