"""Feature datasets that are there already, without images and encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mcmiad_monai.data.feature_store import FeatureBlock, SliceRecord, pack
from mcmiad_monai.data.features import FeatureDataset


def kept_features(
    features: np.ndarray | Tensor,
    *,
    modalities: Sequence[str] | None = None,
    anomalous: Sequence[int] = (),
    records: Sequence[SliceRecord] | None = None,
    foreground: Tensor | None = None,
    lesion: Tensor | None = None,
    size: int = 8,
) -> FeatureDataset:
    """Features (n, C, g, g); slices are of a case and a patient each, unless records are given."""
    count = len(features)
    kinds = modalities or ["brain_mri"] * count
    made = records or [
        SliceRecord(f"c{i}", i, i in anomalous, f"p{i}", kind) for i, kind in enumerate(kinds)
    ]
    everything = torch.ones(count, 1, size, size, dtype=torch.bool)
    block = FeatureBlock(
        list(made),
        np.asarray(features).astype(np.float16),
        foreground=pack(everything if foreground is None else foreground),
        lesion=pack(~everything if lesion is None else lesion),
        size=size,
    )
    return FeatureDataset.from_blocks([block], encoder=cast(Any, None))
