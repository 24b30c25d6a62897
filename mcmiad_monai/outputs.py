"""What a study leaves on disk: heatmap, mask and scores, each written whole or not at all."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.folder_layout import FolderLayoutBase
from monai.data.image_writer import NibabelWriter
from monai.transforms import MapTransform
from torch import Tensor

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.files import replace_atomically, write_text
from mcmiad_monai.inferers import SLICE_SCORES
from mcmiad_monai.scoring import volume_score
from mcmiad_monai.transforms.positions import source_slices

logger = logging.getLogger(__name__)

#: Heatmaps are in units of the pixel threshold.
HEATMAP_THRESHOLD = 1.0


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer with a rename at the end.

    It writes the array as it stands: nothing is resampled, and the axis of a single slice, which
    MONAI would squeeze away, is kept.
    """

    def set_data_array(
        self,
        data_array: Any,
        channel_dim: int | None = 0,
        squeeze_end_dims: bool = True,  # noqa: ARG002 - MONAI's signature
        **_: Any,
    ) -> None:
        """Take one channel (1, X, Y, Z), with the channel first."""
        if channel_dim != 0 or data_array.ndim != 4 or data_array.shape[0] != 1:
            raise ValueError(
                f"an array of shape {tuple(data_array.shape)} with channel axis {channel_dim} is "
                "no heatmap or mask; (1, X, Y, Z) is needed."
            )
        self.data_obj = torch.as_tensor(data_array)[0].cpu().numpy()

    def set_metadata(
        self,
        meta_dict: Mapping[Any, Any] | None,
        resample: bool = True,  # noqa: ARG002 - MONAI's signature
        **_: Any,
    ) -> None:
        """Take the affine."""
        self.affine = np.asarray((meta_dict or {})["affine"], dtype=np.float64)

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj: Any) -> None:
        """Write the volume that was set before."""
        replace_atomically(
            Path(filename), lambda p: super(AtomicNibabelWriter, self).write(p, verbose, **obj)
        )


def case_name(meta: Mapping[str, Any], _saver: Any = None) -> dict[str, Any]:
    """Output names from the case, not from the file: many studies are called ``flair.nii.gz``."""
    return {"subject": meta["case"]}


class CaseLayout(FolderLayoutBase):
    """``<case>/<case>_<postfix>.nii.gz``.

    MONAI's own layout takes what follows the last dot of a name for a suffix, so that the series
    ``1.2.840.1`` and ``1.2.840.2`` would overwrite each other.

    Parameters
    ----------
    output_dir : path
        The cohort's folder.
    postfix : str
        What the file holds, e.g. ``heatmap``.
    """

    def __init__(self, output_dir: str | Path, postfix: str) -> None:
        self.output_dir, self.postfix = Path(output_dir), postfix

    def filename(self, **kwargs: Any) -> Path:
        """Path of the file of the case ``subject``."""
        subject = kwargs["subject"]
        return self.output_dir / subject / f"{subject}_{self.postfix}.nii.gz"


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
        heatmap = data[self.first_key(result)]
        if not isinstance(heatmap, MetaTensor):
            raise TypeError(
                f"the heatmap is a {type(heatmap).__name__} without geometry; a MetaTensor is "
                "needed. Use SliceHeatmapInferer, and Invertd with to_tensor: true."
            )
        mask = MetaTensor((heatmap.as_tensor() > self.threshold).to(torch.uint8))
        mask.copy_meta_from(heatmap)
        result["mask"] = mask
        return result


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
        ``volume_score``, its threshold and verdict, and a list of slices with the array index of
        the source volume.
    """
    scores = slice_scores.double()
    looked_at = torch.isfinite(scores)
    volume = float(volume_score(scores[looked_at])) if looked_at.any() else 0.0
    axis, indices = source_slices(heatmap, slice_axis)
    limit = calibration.slice_threshold if calibration else math.inf
    return {
        "case": str(heatmap.meta["case"]),
        "volume_score": volume,
        **verdict("volume", volume, calibration.volume_threshold if calibration else math.inf),
        "slice_axis": axis,
        "slices_scored": int(looked_at.sum()),
        "slices_skipped": int((~looked_at).sum()),
        "slices": [
            {"index": indices[k], "score": float(scores[k]), **verdict("slice", scores[k], limit)}
            for k in torch.nonzero(looked_at).flatten().tolist()
        ],
    }


def verdict(what: str, score: Any, threshold: float) -> dict[str, Any]:
    """Threshold and decision; both are null where the threshold could not be set."""
    finite = math.isfinite(threshold)
    return {
        f"{what}_threshold": threshold if finite else None,
        "anomalous": bool(score > threshold) if finite else None,
    }


class SaveScoresd(MapTransform):
    """Write ``<case>/<case>_scores.json`` and keep the scores under ``scores``.

    Reads ``slice_scores``, which :class:`KeepSliceScoresd` puts there before ``Invertd``.

    Parameters
    ----------
    keys : str
        The heatmap on the source grid.
    output_dir : path
        The cohort's folder.
    slice_axis : int
        Canonical slice axis of the inferer.
    calibration : dict, optional
        Of the packaged detector.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        output_dir: str | Path,
        slice_axis: int = 2,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(keys)
        self.output_dir, self.slice_axis = Path(output_dir), slice_axis
        self.calibration = Calibration.from_dict(dict(calibration)) if calibration else None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the scores of one study."""
        result = dict(data)
        heatmap = data[self.first_key(result)]
        scores = study_scores(
            heatmap,
            data[SLICE_SCORES],
            slice_axis=self.slice_axis,
            calibration=self.calibration,
        )
        name = scores["case"]
        write_text(self.output_dir / name / f"{name}_scores.json", json.dumps(scores, indent=1))
        result["scores"] = scores
        return result
