"""DICOM structured report of the scores: TID 1500, measurement report."""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept, Measurement, QualitativeEvaluation, TrackingIdentifier
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from mcmiad_monai.dicom.codes import ABNORMAL, HEAT, MILLILITRES, NO_UNIT, own
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
    groups = [_study(prediction, identity, algorithm), *_hottest(source, prediction, identity)]
    evidence = list(source.headers)
    if segments:
        evidence.append(_reference(source, identity))
        groups += _segments(source, identity, segments)
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


def _study(prediction: Prediction, identity: Identity, algorithm: Any) -> Any:
    """Score, threshold, volume and verdict of the whole study."""
    found = {
        own("volume-score", "Anomaly score of the study"): (prediction.score, NO_UNIT),
        own("volume-threshold", "Threshold of the score"): (prediction.threshold, NO_UNIT),
        codes.SCT.Volume: (prediction.scores.get("anomaly_ml"), MILLILITRES),
    }
    said = [QualitativeEvaluation(own("verdict", "Verdict"), VERDICTS[prediction.anomalous])]
    warning = own("warning", "Warning")
    said += [
        QualitativeEvaluation(warning, own(word, WARNINGS[word])) for word in prediction.warnings
    ]
    said.append(QualitativeEvaluation(own("use", "Use"), own("research", NOTE.capitalize())))
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(identity.uid("study"), "study"),
        algorithm_id=algorithm,
        measurements=[
            Measurement(name, value, unit)
            for name, (value, unit) in found.items()
            if value is not None
        ],
        qualitative_evaluations=said,
    )


def _hottest(source: Source, prediction: Prediction, identity: Identity) -> list[Any]:
    """The hottest point, in the LPS millimetres of DICOM; nothing where no heat is above 0."""
    place, heat = prediction.scores.get("hottest_mm"), prediction.scores.get("hottest")
    if place is None or heat is None:
        return []
    point = np.array([place]) * (-1, -1, 1)  # from RAS, (1, 3)
    region = hd.sr.ImageRegion3D("POINT", point, source.headers[0].FrameOfReferenceUID)
    return [
        hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(identity.uid("hottest"), "hottest point"),
            referenced_region=region,
            finding_type=own("hottest", "Hottest point"),
            measurements=[Measurement(HEAT, heat, NO_UNIT)],
        )
    ]


def _segments(source: Source, identity: Identity, segments: Segments) -> list[Any]:
    """Volume of each segment, with a reference to it."""
    voxel_ml = float(np.abs(np.linalg.det(source.affine[:3, :3]))) / 1000
    of_series = hd.sr.SourceSeriesForSegmentation(source.series)
    return [
        hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(identity.uid("segment", name), name),
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
