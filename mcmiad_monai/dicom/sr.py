"""DICOM structured report of the scores: TID 1500, measurement report."""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept, Measurement, QualitativeEvaluation, TrackingIdentifier
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from mcmiad_monai.dicom.codes import ABNORMAL, HEAT, MILLILITRES, RATIO, SCORE, own
from mcmiad_monai.dicom.identity import NAME, NOTE, Identity
from mcmiad_monai.dicom.seg import Segments
from mcmiad_monai.dicom.source import Source
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.version import __version__

PROCEDURES = {
    "CT": CodedConcept("25045-6", "LN", "CT unspecified body region"),
    "MR": CodedConcept("25056-3", "LN", "MRI unspecified body region"),
}
"""What was done to the patient, by the modality in the header."""

IMAGING = CodedConcept("18748-4", "LN", "Diagnostic imaging study")
"""The same for other modalities."""

SQUARE = 1e-3
"""Relative difference of the sides of pixels that are called square."""

VERDICTS = {
    True: own("anomalous", "Above the threshold"),
    False: own("normal", "Not above the threshold"),
    None: own("none", "No verdict"),
}

WARNINGS = {
    "nothing_looked_at": "No slice was looked at: no score",
    "out_of_distribution": "Unlike the studies of the training: trust neither score nor verdict",
}
"""Meanings of the scores' warnings."""


def report(
    source: Source,
    prediction: Prediction,
    identity: Identity,
    segments: Segments | None,
) -> Any:
    """Score, threshold, verdict, volumes and the hottest point, as a Dataset of highdicom.

    Parameters
    ----------
    segments : Segments, optional
        Of the segmentation that is written too; the report refers to each of them.
    """
    algorithm = hd.sr.AlgorithmIdentification(
        name=NAME,
        version=__version__,
        parameters=[f"{key}={value}" for key, value in identity.parameters.items()],
    )
    # all are of one finding: OHIF joins them so, and opens the image that one of them lies in
    finding = TrackingIdentifier(identity.uid("finding"), "anomaly")
    groups = [
        _study(prediction, finding, algorithm, has_volume=segments is None or len(segments) != 1),
        *_hottest(source, prediction, finding),
    ]
    evidence = list(source.headers)
    if segments:
        evidence.append(_reference(source, identity))
        groups += _segments(source, identity, finding, segments)
    observer = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=identity.uid("device"),
        name=NAME,
        manufacturer_name=NAME,
        model_name=f"{NAME} {prediction.modality}",
        serial_number=identity.model,
    )
    context = hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=observer
        )
    )
    content = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=PROCEDURES.get(source.headers[0].get("Modality", ""), IMAGING),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=evidence,
        content=content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        **identity.instance("sr", "Anomaly scores"),
    )


def _study(
    prediction: Prediction, finding: TrackingIdentifier, algorithm: Any, *, has_volume: bool
) -> Any:
    """Score, threshold, volume (unless it is that of the one segment) and verdict of the study."""
    found = {
        own("volume-score", "Anomaly score of the study"): (prediction.score, SCORE),
        own("volume-threshold", "Threshold of the score"): (prediction.threshold, SCORE),
    }
    if has_volume:
        found[codes.SCT.Volume] = (prediction.scores.get("anomaly_ml"), MILLILITRES)
    said = [QualitativeEvaluation(own("verdict", "Verdict"), VERDICTS[prediction.anomalous])]
    warning = own("warning", "Warning")
    said += [
        QualitativeEvaluation(warning, own(word, WARNINGS[word])) for word in prediction.warnings
    ]
    said.append(QualitativeEvaluation(own("use", "Use"), own("research", NOTE.capitalize())))
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=finding,
        algorithm_id=algorithm,
        measurements=[
            Measurement(name, value, unit)
            for name, (value, unit) in found.items()
            if value is not None
        ],
        qualitative_evaluations=said,
    )


def _hottest(source: Source, prediction: Prediction, finding: TrackingIdentifier) -> list[Any]:
    """The hottest point; nothing where no heat is above 0."""
    heat = prediction.scores.get("hottest")
    if heat is None:
        return []
    return [
        hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=finding,
            referenced_region=_point(source, prediction),
            finding_type=own("hottest", "Hottest point"),
            measurements=[Measurement(HEAT, heat, RATIO)],
        )
    ]


def _point(source: Source, prediction: Prediction) -> Any:
    """Where the hottest point is: on its image, or in the patient if pixels are not square.

    A viewer opens the image that a point is on. OHIF 3.12 does, and swaps the two sizes of a pixel;
    so of oblong pixels it had better show no point than one at another place.
    """
    width, height = source.places[0].spacing
    if not np.isclose(width, height, rtol=SQUARE):
        place = np.array([prediction.scores["hottest_mm"]]) * (-1, -1, 1)  # RAS to LPS, (1, 3)
        return hd.sr.ImageRegion3D("POINT", place, source.headers[0].FrameOfReferenceUID)
    column, row, number = prediction.scores["hottest_voxel"]
    middle = np.array([[column, row]]) + 0.5  # 0 is the corner of the first pixel (PS3.3, C.18.6)
    return hd.sr.ImageRegion("POINT", middle, hd.sr.SourceImageForRegion(*source.image_of(number)))


def _segments(
    source: Source, identity: Identity, finding: TrackingIdentifier, segments: Segments
) -> list[Any]:
    """Volume of each segment, with a reference to it."""
    voxel_ml = float(np.abs(np.linalg.det(source.affine[:3, :3]))) / 1000
    of_series = hd.sr.SourceSeriesForSegmentation(source.series)
    return [
        hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=finding,
            # not from the segmentation: highdicom's own way fails where there is one segment
            referenced_segment=hd.sr.ReferencedSegment(
                SegmentationStorage,
                identity.uid("seg", "instance"),
                number,
                source_series=of_series,
            ),
            finding_type=ABNORMAL,
            measurements=[
                Measurement(
                    codes.SCT.Volume,
                    voxel_ml * int(np.count_nonzero(segments.labels == number)),
                    MILLILITRES,
                )
            ],
            qualitative_evaluations=[
                QualitativeEvaluation(own("segment", "Segment"), own(f"segment-{number}", name))
            ],
        )
        for number, name in enumerate(segments.names, 1)
    ]


def _reference(source: Source, identity: Identity) -> Dataset:
    """What a report says of the segmentation that it refers to."""
    reference = Dataset()
    reference.StudyInstanceUID = source.headers[0].StudyInstanceUID
    reference.SeriesInstanceUID = identity.uid("seg", "series")
    reference.SOPInstanceUID = identity.uid("seg", "instance")
    reference.SOPClassUID = SegmentationStorage
    return reference
