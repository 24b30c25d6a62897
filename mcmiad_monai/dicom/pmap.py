"""DICOM parametric map of the heatmap."""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless

from mcmiad_monai.dicom.codes import HEAT, NO_UNIT, REGIONS
from mcmiad_monai.dicom.identity import NOTE, Identity
from mcmiad_monai.dicom.source import Source
from mcmiad_monai.inference.prediction import Prediction

STEP = 1e-3
"""Heat between two values of a compact map, where heat up to 65.5 is held."""

LARGEST = 65535
"""Of the numbers in a compact map."""


def parametric_map(
    source: Source, prediction: Prediction, identity: Identity, *, compact: bool = False
) -> Any:
    """All slices of a heatmap in ascending position, as a Dataset of highdicom.

    Parameters
    ----------
    compact : bool
        16-bit numbers times a step of 0.001 or, of heat beyond 65.5, of its largest value / 65535,
        without loss by JPEG-LS; else 32-bit floats as they are.
    """
    heat = np.ascontiguousarray(prediction.heatmap.numpy()[0], np.float32)  # (X, Y, Z)
    step = max(STEP, float(heat.max()) / LARGEST) if compact else 1.0
    stored = np.rint(heat / step).astype(np.uint16) if compact else heat
    end = max(1.0, float(heat.max()))
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="heat",
        lut_explanation="1.0 is the calibrated threshold",
        unit=NO_UNIT,
        value_range=(0, LARGEST) if compact else (0.0, end),
        slope=step,
        intercept=0.0,
        quantity_definition=HEAT,
    )
    window = hd.VOILUTTransformation(window_center=1 / step, window_width=2 / step)
    made = hd.pm.ParametricMap(
        source_images=source.headers,
        pixel_array=source.frames(stored),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label="ANOMALY",
        content_description=f"Anomaly heatmap ({NOTE})",
        content_creator_name="",
        **identity.instance("pmap", "Anomaly heatmap"),
    )
    _ascending(made, source, stored)
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_anatomy(source, prediction)]
    if compact:
        made.compress(JPEGLSLossless, generate_instance_uid=False)
    return made


def _ascending(made: Any, source: Source, stored: NDArray[Any]) -> None:
    """Put the frames into the order of their positions along the normal.

    highdicom orders them the other way round, and dcmqi's reader then turns the map upside down.
    """
    normal, groups = source.places[0].normal, made.PerFrameFunctionalGroupsSequence
    places = [normal @ np.array(g.PlanePositionSequence[0].ImagePositionPatient) for g in groups]
    made.PerFrameFunctionalGroupsSequence = [groups[k] for k in np.argsort(places, kind="stable")]
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence, 1):
        group.FrameContentSequence[0].DimensionIndexValues = [number]
    pixels = "FloatPixelData" if stored.dtype == np.float32 else "PixelData"
    made[pixels].value = np.ascontiguousarray(stored.T).tobytes()


def _anatomy(source: Source, prediction: Prediction) -> Dataset:
    """Region and side of all frames, without which dcmqi does not read a map."""
    anatomy, side = Dataset(), source.headers[0].get("ImageLaterality")
    anatomy.FrameLaterality = side if side in ("R", "L", "B") else "U"
    region = REGIONS.get(prediction.modality)
    anatomy.AnatomicRegionSequence = [] if region is None else [region]
    return anatomy
