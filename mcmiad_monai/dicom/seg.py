"""DICOM segmentation of what is anomalous: the mask, or severity bands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from mcmiad_monai.dicom.codes import ABNORMAL, REGIONS
from mcmiad_monai.dicom.identity import NAME, NOTE, Identity
from mcmiad_monai.dicom.source import Source
from mcmiad_monai.inference.bands import LABELS, labels_of
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.version import __version__

COLOURS = {1: (255, 200, 0), 2: (255, 120, 0), 3: (220, 20, 20)}
"""Red, green and blue that a viewer is asked to show a label in."""


@dataclass(frozen=True)
class Segments:
    """What is segmented.

    Attributes
    ----------
    labels : (X, Y, Z) ndarray of uint8
        0, or the number of a segment, from 1.
    names, colours : list
        Of the segments.
    """

    labels: NDArray[np.uint8]
    names: list[str]
    colours: list[tuple[int, int, int]]

    def __len__(self) -> int:
        return len(self.names)


def segments_of(prediction: Prediction, *, bands: bool) -> Segments:
    """The segments of a prediction that have a voxel, numbered without gaps."""
    if bands:
        threshold = float(prediction.scores["made_with"]["mask_threshold"])
        labels = labels_of(prediction.heatmap.numpy()[0], threshold=threshold, bands=True)
    else:
        labels = prediction.mask.numpy()[0]
    present = [value for value in LABELS if (labels == value).any()]
    numbers = np.zeros(max(LABELS) + 1, np.uint8)
    numbers[present] = np.arange(1, len(present) + 1)
    return Segments(numbers[labels], [LABELS[v] for v in present], [COLOURS[v] for v in present])


def segmentation(
    segments: Segments, source: Source, prediction: Prediction, identity: Identity
) -> Any:
    """A binary segmentation, as a Dataset of highdicom.

    Parameters
    ----------
    segments : Segments
        At least one: DICOM has no segmentation without.
    """
    algorithm = hd.AlgorithmIdentificationSequence(
        name=NAME,
        version=__version__,
        family=hd.sr.CodedConcept("123109", "DCM", "Artificial Intelligence"),
        parameters=identity.parameters,
    )
    region = REGIONS.get(prediction.modality)
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=ABNORMAL,
            segmented_property_type=ABNORMAL,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=identity.uid("segment", name),
            tracking_id=name,
            anatomic_regions=None if region is None else [region],
            display_color=hd.color.CIELabColor.from_rgb(*colour),
        )
        for number, (name, colour) in enumerate(
            zip(segments.names, segments.colours, strict=True), 1
        )
    ]
    return hd.seg.Segmentation(
        source_images=source.headers,
        pixel_array=source.frames(segments.labels),
        segmentation_type="BINARY",
        segment_descriptions=described,
        content_label="ANOMALY",
        content_description=f"Anomalies ({NOTE})",
        content_creator_name="",
        **identity.instance("seg", "Anomalies"),
    )
