"""Volume to slices and back: loading, checks, orientation, intensity, slicing, restoration."""

from __future__ import annotations

from mcmiad_monai.transforms.checks import VolumeError
from mcmiad_monai.transforms.field_of_view import FieldOfView, FieldOfViewd, on_whole_grid
from mcmiad_monai.transforms.intensity import (
    FOREGROUND_FLOOR,
    NormalizeCT,
    NormalizeCTd,
    NormalizeMRI,
    NormalizeMRId,
    NormalizeOCT,
    NormalizeOCTd,
    NormalizeStudyd,
    normalizer,
)
from mcmiad_monai.transforms.kind import StudyModalityd
from mcmiad_monai.transforms.orientation import CanonicalOrientation, CanonicalOrientationd
from mcmiad_monai.transforms.recipes import preprocessing
from mcmiad_monai.transforms.region import LoadOrganMaskd, OrganRegiond
from mcmiad_monai.transforms.restore import as_heatmap, insert_slices, restore_maps
from mcmiad_monai.transforms.slices import (
    MIN_FOREGROUND,
    NETWORK_SIZE,
    ExtractSlices,
    foreground_slices,
    select_slices,
    slice_batch,
    slice_to_world,
    slices_in_range,
)
from mcmiad_monai.transforms.volume import (
    LoadMaskd,
    LoadVolumed,
    load_heatmap,
    load_mask,
    load_volume,
)

__all__ = [
    "FOREGROUND_FLOOR",
    "MIN_FOREGROUND",
    "NETWORK_SIZE",
    "CanonicalOrientation",
    "CanonicalOrientationd",
    "ExtractSlices",
    "FieldOfView",
    "FieldOfViewd",
    "LoadMaskd",
    "LoadOrganMaskd",
    "LoadVolumed",
    "NormalizeCT",
    "NormalizeCTd",
    "NormalizeMRI",
    "NormalizeMRId",
    "NormalizeOCT",
    "NormalizeOCTd",
    "NormalizeStudyd",
    "OrganRegiond",
    "StudyModalityd",
    "VolumeError",
    "as_heatmap",
    "foreground_slices",
    "insert_slices",
    "load_heatmap",
    "load_mask",
    "load_volume",
    "normalizer",
    "on_whole_grid",
    "preprocessing",
    "restore_maps",
    "select_slices",
    "slice_batch",
    "slice_to_world",
    "slices_in_range",
]
