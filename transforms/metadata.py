"""The metadata of volumes: what MONAI's Invertd and SaveImaged ask for, whatever the format."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

PICTURE = "picture"
"""Metadata key: the volume came from a PNG, JPEG, TIFF or BMP, so it holds display grey levels."""

DICOM_MODALITY = "dicom_modality"
"""Metadata key: what the header of the file, or a BIDS sidecar beside it, calls the modality."""

MODALITY = "modality"
"""Metadata key: name of the study's modality, as `mcmiad_monai.modality` has it."""

MODALITY_FROM = "modality_from"
"""Metadata key: where that is known from, for people."""

INPUT = "input"
"""Metadata key: SHA-256 of the files that the study was read from."""

NIFTI_HEADER = "nifti_header"
"""Metadata key: the header of a NIfTI file, (348,) bytes, for what is written of the study."""


def new_volume(
    values: NDArray[np.float32],
    affine: NDArray[np.float64],
    path: Path,
    *,
    picture: bool,
    dicom_modality: str | None = None,
    nifti_header: NDArray[np.uint8] | None = None,
) -> MetaTensor:
    """Volume (1, X, Y, Z) float32 of (X, Y, Z), with the metadata of MONAI's LoadImage.

    Three colours (3, X, Y, Z) stay three channels.
    """
    meta: dict[str, Any] = {
        MetaKeys.ORIGINAL_AFFINE.value: affine.copy(),
        MetaKeys.SPATIAL_SHAPE.value: np.asarray(values.shape[-3:]),
        MetaKeys.SPACE.value: SpaceKeys.RAS.value,
        MetaKeys.ORIGINAL_CHANNEL_DIM.value: float("nan"),
        "filename_or_obj": str(path),
        PICTURE: picture,
    }
    if dicom_modality is not None:
        meta[DICOM_MODALITY] = dicom_modality
    if nifti_header is not None:
        meta[NIFTI_HEADER] = nifti_header
    voxels = torch.from_numpy(np.ascontiguousarray(values))
    voxels = voxels if voxels.ndim == 4 else voxels[None]  # (1 or 3, X, Y, Z)
    return MetaTensor(voxels, affine=torch.from_numpy(affine.copy()), meta=meta)


def with_metadata_of(values: torch.Tensor, like: MetaTensor) -> MetaTensor:
    """Wrap `values` with copies of the affine, the metadata and the trace of `like`."""
    return MetaTensor(
        values,
        meta=deepcopy(like.meta),
        applied_operations=deepcopy(like.applied_operations),
    )


def plain(volume: torch.Tensor) -> torch.Tensor:
    """The same storage without metadata, for arithmetic that should not carry it along."""
    return volume.as_tensor() if isinstance(volume, MetaTensor) else volume


def check_volume(volume: torch.Tensor) -> None:
    """Refuse anything but one channel, or three colours, of three spatial axes.

    Raises
    ------
    ValueError
        If the shape is not (1, X, Y, Z) or (3, X, Y, Z).
    """
    if volume.ndim != 4 or volume.shape[0] not in (1, 3):
        raise ValueError(
            f"a tensor of shape {tuple(volume.shape)} is no volume; (1, X, Y, Z) is expected. Add "
            "the channel axis, and give one volume at a time."
        )
