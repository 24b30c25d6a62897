"""The structured report says what the scores say, to highdicom and to dcmtk."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_series import write_frames, write_series
from known_heat import MADE_WITH, SERIES, errors_of, heat_on, volume_of
from oblique import oblique_affine

from mcmiad_monai.dicom.objects import write_objects
from mcmiad_monai.dicom.source import read_source
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.version import __version__


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return SERIES["oblique"](tmp_path / "series")


def scored(series: Path, **changed: Any) -> Prediction:
    prediction = heat_on(series)
    known = {"volume_score": 1.75, "volume_threshold": 1.25, "anomalous": True}
    return replace(prediction, scores={**prediction.scores, **known, **changed})


def report_of(prediction: Prediction, series: Path, **options: Any) -> Any:
    out = series.parent / "out"
    kinds = options.pop("kinds", ["seg", "sr"])
    files = write_objects(prediction, read_source(series), kinds, out, **options)
    return hd.sr.srread(files[-1])


def measured(group: Any) -> dict[str, tuple[float, str]]:
    return {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements()}


def said(group: Any) -> dict[str, str]:
    return {e.name.meaning: e.value.meaning for e in group.get_qualitative_evaluations()}


def test_report_has_the_scores_and_who_computed_them(series: Path) -> None:
    prediction = scored(series)
    report = report_of(prediction, series, kinds=["sr"])
    (study,) = report.content.get_image_measurement_groups()
    assert measured(study) == {
        "Anomaly score of the study": (1.75, "{score}"),
        "Threshold of the score": (1.25, "{score}"),
        "Volume": (pytest.approx(prediction.scores["anomaly_ml"]), "ml"),
    }
    assert said(study) == {
        "Verdict": "Above the threshold",
        "Use": "Research, not for diagnosis",
    }
    texts = [item.TextValue for item in study[0].ContentSequence if item.ValueType == "TEXT"]
    assert {"mcmiad_monai", __version__, f"model={MADE_WITH['model']}"} <= set(texts)


def place_of(path: Path, region: Any) -> np.ndarray:
    """Where a point on an image lies in the patient, in RAS millimetres, by the image's header."""
    reference = region.ContentSequence[0].ReferencedSOPSequence[0]
    uid, frame = reference.ReferencedSOPInstanceUID, reference.get("ReferencedFrameNumber")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    (header,) = (h for h in map(pydicom.dcmread, files) if h.SOPInstanceUID == uid)
    if frame is not None:
        shared = header.SharedFunctionalGroupsSequence[0]
        group = header.PerFrameFunctionalGroupsSequence[int(frame) - 1]
        position = group.PlanePositionSequence[0].ImagePositionPatient
        plane = (shared if "PlaneOrientationSequence" in shared else group).PlaneOrientationSequence
        axes = plane[0].ImageOrientationPatient
        sizes = (shared if "PixelMeasuresSequence" in shared else group).PixelMeasuresSequence
        between_rows, between_columns = sizes[0].PixelSpacing
    else:
        position, axes = header.ImagePositionPatient, header.ImageOrientationPatient
        between_rows, between_columns = header.PixelSpacing
    (column, row), axes = region.value[0] - 0.5, np.array(axes, float).reshape(2, 3)
    place = np.array(position, float)
    place += column * between_columns * axes[0] + row * between_rows * axes[1]
    return np.array(place * (-1, -1, 1))


@pytest.mark.parametrize("kind", SERIES)
def test_report_has_the_hottest_point_in_the_patient(kind: str, tmp_path: Path) -> None:
    series = SERIES[kind](tmp_path / "series")
    prediction = scored(series)
    (group,) = report_of(prediction, series).content.get_planar_roi_measurement_groups()
    x, y, z = prediction.scores["hottest_mm"]
    np.testing.assert_allclose(group.roi.value, [(-x, -y, z)], atol=1e-4)  # float32, LPS
    assert measured(group) == {"Anomaly score in units of its threshold": (5.0, "{ratio}")}


@pytest.mark.parametrize("frames", [None, range(7), (4, 0, 6, 2, 5, 1, 3)])
def test_of_square_pixels_the_hottest_point_is_on_its_image(tmp_path: Path, frames: Any) -> None:
    affine = oblique_affine("PIR")
    affine[:3, :2] /= np.linalg.norm(affine[:3, :2], axis=0)
    if frames is None:
        series = write_series(tmp_path / "series", volume_of(), affine)
    else:
        series = write_frames(tmp_path / "series" / "all.dcm", volume_of(), affine, frames)
    prediction = scored(series)
    files = write_objects(prediction, read_source(series), ["sr"], tmp_path / "out")
    (group,) = hd.sr.srread(files[0]).content.get_planar_roi_measurement_groups()
    np.testing.assert_allclose(
        place_of(series, group.roi), prediction.scores["hottest_mm"], atol=1e-3
    )
    assert errors_of(files[0]) == []


def test_a_sheared_grid_has_a_report_with_the_right_place(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    affine[1, 2] = 1.4  # 19 degrees of tilt
    series = write_series(tmp_path / "series", volume_of(), affine)
    prediction = scored(series)
    report = report_of(prediction, series, kinds=["sr"])
    (group,) = report.content.get_planar_roi_measurement_groups()
    np.testing.assert_allclose(
        place_of(series, group.roi), prediction.scores["hottest_mm"], atol=1e-3
    )


def test_all_groups_of_a_report_are_of_one_finding(series: Path) -> None:
    """OHIF 3.12 shows no report with a group that no place on an image belongs to."""
    content = report_of(scored(series), series, bands=True).content
    groups = [
        *content.get_image_measurement_groups(),
        *content.get_planar_roi_measurement_groups(),
        *content.get_volumetric_roi_measurement_groups(),
    ]
    assert len(groups) == 5
    assert len({group.tracking_uid for group in groups}) == 1


@pytest.mark.parametrize("bands", [False, True])
def test_report_refers_to_each_segment(series: Path, bands: bool) -> None:
    prediction = scored(series)
    report = report_of(prediction, series, bands=bands)
    segmentation = pydicom.dcmread(series.parent / "out" / "case" / "case_seg.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == (3 if bands else 1)
    for number, group in enumerate(groups, 1):
        (item,) = [i for i in group[0].ContentSequence if i.ValueType == "IMAGE"]
        reference = item.ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == number
        label = segmentation.SegmentSequence[number - 1].SegmentLabel
        assert said(group) == {"Segment": label}
    volumes = [measured(group)["Volume"][0] for group in groups]
    assert sum(volumes) == pytest.approx(prediction.scores["anomaly_ml"])
    (study,) = report.content.get_image_measurement_groups()
    assert ("Volume" in measured(study)) == bands, "no volume is there twice"


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"anomalous": False}, "Not above the threshold"),
        ({"anomalous": None, "volume_threshold": None}, "No verdict"),
    ],
)
def test_report_has_no_number_that_is_not_known(
    series: Path, changed: dict[str, Any], verdict: str
) -> None:
    (study,) = report_of(scored(series, **changed), series).content.get_image_measurement_groups()
    assert said(study)["Verdict"] == verdict
    assert ("Threshold of the score" in measured(study)) == ("volume_threshold" not in changed)


def test_report_of_a_study_that_was_not_looked_at_says_so(series: Path) -> None:
    prediction = heat_on(series)
    prediction.heatmap.zero_()
    prediction.mask.zero_()
    nothing: dict[str, Any] = dict.fromkeys(
        ("volume_score", "volume_threshold", "anomalous", "hottest", "hottest_mm")
    )
    scores = {**prediction.scores, **nothing, "warnings": ["nothing_looked_at"], "anomaly_ml": 0.0}
    content = report_of(replace(prediction, scores=scores), series).content
    (study,) = content.get_image_measurement_groups()
    assert measured(study) == {"Volume": (0.0, "ml")}
    assert said(study)["Warning"] == "No slice was looked at: no score"
    assert content.get_planar_roi_measurement_groups() == []


def test_dcmtk_reads_the_report(series: Path) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump (dcmtk) is not installed")
    report_of(scored(series), series)
    path = series.parent / "out" / "case" / "case_sr.dcm"
    done = subprocess.run(["dsrdump", str(path)], check=True, capture_output=True, text=True)
    assert 'NUM:(,,"Anomaly score of the study")="1.75"' in done.stdout
    assert "SCOORD3D:" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
