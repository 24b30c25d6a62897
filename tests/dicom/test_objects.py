"""What stands in the objects: whose they are, what they say, and which are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_series import FRAME_OF_REFERENCE, PATIENT, STUDY, write_frames, write_series
from known_heat import SERIES, SHAPE, errors_of, heat_on, predicted, volume_of
from oblique import oblique_affine

from mcmiad_monai.dicom.identity import NOTE
from mcmiad_monai.dicom.objects import KINDS, write_objects
from mcmiad_monai.dicom.source import SourceError, read_source
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.transforms import load_volume

#: Groups of attributes of patients and of their studies.
PATIENT_GROUP = 0x0010


@pytest.fixture
def oblique(tmp_path: Path) -> Path:
    return SERIES["oblique"](tmp_path / "series")


def write(prediction: Prediction, series: Path, **options: Any) -> dict[str, Path]:
    kinds = options.pop("kinds", KINDS)
    out = series.parent / "out"
    files = write_objects(prediction, read_source(series), kinds, out, **options)
    return {path.stem.rpartition("_")[2]: path for path in files}


@pytest.mark.parametrize("form", ["plain", "compact"])
@pytest.mark.parametrize("series", ["oblique", "mr", "shuffled_frames"], indirect=True)
def test_dciodvfy_finds_no_error(series: Path, form: str) -> None:
    files = write(heat_on(series), series, compact=form == "compact", bands=form == "compact")
    assert {kind: errors_of(path) for kind, path in files.items()} == {kind: [] for kind in KINDS}


def test_dciodvfy_finds_no_error_in_objects_of_an_eye(tmp_path: Path) -> None:
    """Of which a side is known, and whose frames have places."""
    path = tmp_path / "series" / "all.dcm"
    write_frames(path, volume_of(), oblique_affine("LPS"), range(7), modality="OPT")
    file = pydicom.dcmread(path)
    file.ImageLaterality = "R"
    file.save_as(path)
    files = write(heat_on(path.parent, modality="retina_oct"), path.parent)
    assert [errors for kind in KINDS if (errors := errors_of(files[kind]))] == []
    assert pydicom.dcmread(files["sc"]).Laterality == "R"
    (anatomy,) = pydicom.dcmread(files["pmap"]).SharedFunctionalGroupsSequence[0][
        "FrameAnatomySequence"
    ]
    assert anatomy.FrameLaterality == "R"


def test_objects_are_of_the_patient_and_the_study_and_say_what_they_are(oblique: Path) -> None:
    source = pydicom.dcmread(next(oblique.iterdir()))
    for kind, path in write(heat_on(oblique), oblique).items():
        require_of_study(pydicom.dcmread(path), source, kind)


def require_of_study(made: pydicom.Dataset, source: pydicom.Dataset, kind: str) -> None:
    copied = {element.keyword for element in made if element.tag.group == PATIENT_GROUP}
    assert copied <= set(PATIENT), "nothing is added"
    for name in copied | {"AccessionNumber", "StudyID", "StudyDate", "StudyTime"}:
        assert made[name].value == source[name].value, name
    assert {"PatientID", "PatientName", "PatientBirthDate", "PatientSex"} <= copied
    assert made.StudyInstanceUID == STUDY
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert NOTE in made.SeriesDescription
    assert made.Manufacturer == "mcmiad_monai"
    if kind in ("seg", "pmap"):
        assert made.FrameOfReferenceUID == FRAME_OF_REFERENCE
        assert NOTE in made.ContentDescription


def test_names_in_other_scripts_are_copied(tmp_path: Path) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"  # as of DICOM PS3.5, H.3.1
    series = write_series(
        tmp_path / "series",
        volume_of(),
        oblique_affine("LPS"),
        SpecificCharacterSet="ISO_IR 192",
        PatientName=name,
    )
    for kind, path in write(heat_on(series), series, kinds=("seg", "sr")).items():
        assert str(pydicom.dcmread(path).PatientName) == name, kind


def test_no_message_quotes_a_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """highdicom warns of names of one part, and quotes them."""
    series = write_series(
        tmp_path / "series", volume_of(), oblique_affine("LPS"), PatientName="Solitary"
    )
    write(heat_on(series), series)
    captured = capfd.readouterr()
    told = captured.out + captured.err + "".join(str(warning.message) for warning in recwarn)
    assert "Solitary" not in told


def test_a_series_without_a_patient_stays_without(tmp_path: Path) -> None:
    absent = dict.fromkeys(PATIENT)
    series = write_series(tmp_path / "series", volume_of(), oblique_affine("LPS"), **absent)
    for kind, path in write(heat_on(series), series, kinds=("seg", "sr")).items():
        made = pydicom.dcmread(path)
        assert not any(e.value for e in made if e.tag.group == PATIENT_GROUP), kind
        assert errors_of(path) == []


def uids(files: dict[str, Path]) -> dict[str, set[str]]:
    """All UIDs in files that are not the source's, nor the standard's."""
    found: dict[str, set[str]] = {}
    for kind, path in files.items():
        elements = pydicom.dcmread(path).iterall()
        values = {str(e.value) for e in elements if e.VR == "UI" and e.value}
        found[kind] = {v for v in values if not v.startswith(("1.2.840.", STUDY))}
    return found


def test_a_second_run_has_the_same_uids_and_another_model_others(oblique: Path) -> None:
    prediction = heat_on(oblique)
    kinds = ("seg", "pmap", "sr")
    first = uids(write(prediction, oblique, kinds=kinds))
    assert all(first.values())
    assert uids(write(prediction, oblique, kinds=kinds)) == first
    others: list[dict[str, Any]] = [
        {"made_with": {**prediction.scores["made_with"], "model": "ef" * 32}},
        {"made_with": {**prediction.scores["made_with"], "mask_threshold": 0.5}},
        {"input": "01" * 32},
    ]
    for changed in others:
        other = replace(prediction, scores={**prediction.scores, **changed})
        for kind, found in uids(write(other, oblique, kinds=kinds)).items():
            assert not found & first[kind], (kind, changed)
    for form in ({"compact": True}, {"bands": True}):
        for kind, found in uids(write(prediction, oblique, kinds=kinds, **form)).items():
            assert not found & first[kind], (kind, form)


def test_kinds_have_series_of_their_own(oblique: Path) -> None:
    made = [pydicom.dcmread(path) for path in write(heat_on(oblique), oblique).values()]
    assert len({m.SeriesInstanceUID for m in made}) == len({m.SeriesNumber for m in made}) == 4
    assert [int(m.SeriesNumber) for m in made] == [391, 392, 393, 394]


def test_an_empty_mask_has_no_segmentation(oblique: Path) -> None:
    files = write(heat_on(oblique, hottest=0.9), oblique, kinds=["seg", "pmap", "sr"])
    assert set(files) == {"pmap", "sr"}
    report = hd.sr.srread(files["sr"])
    assert report.content.get_volumetric_roi_measurement_groups() == []


def test_compact_values_are_near_and_smaller(oblique: Path) -> None:
    prediction = heat_on(oblique, hottest=200.0)
    plain = write(prediction, oblique)
    sizes = {kind: path.stat().st_size for kind, path in plain.items()}
    compact = write(prediction, oblique, compact=True)
    assert compact["pmap"].stat().st_size < sizes["pmap"]
    assert compact["sc"].stat().st_size < sizes["sc"] / 2
    assert compact["seg"].stat().st_size < sizes["seg"]
    heat = hd.imread(compact["pmap"]).get_volume().array
    assert float(heat.max()) == pytest.approx(200, abs=200 / 65535)  # beyond 65.5: wider steps


def test_the_picture_is_in_colour_and_names_nobody(oblique: Path) -> None:
    made = pydicom.dcmread(write(heat_on(oblique), oblique, kinds=["sc"])["sc"])
    pixels = made.pixel_array
    assert pixels.shape == (made.Rows, made.Columns, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert made.BurnedInAnnotation == "NO"
    other = replace(heat_on(oblique), scores={**heat_on(oblique).scores, "case": "Doe Jane"})
    again = pydicom.dcmread(write(other, oblique, kinds=["sc"])["sc"])
    np.testing.assert_array_equal(again.pixel_array, pixels)


def sheared(tmp_path: Path) -> Path:
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    affine[1, 2] = 1.4  # 19 degrees of tilt
    return write_series(tmp_path / "series", volume_of(), affine)


@pytest.mark.parametrize("kind", ["seg", "pmap"])
def test_a_sheared_grid_has_no_objects_on_slices(tmp_path: Path, kind: str) -> None:
    series = sheared(tmp_path)
    with pytest.raises(SourceError, match=rf"sheared grid.*8\.4 pixels.*{kind} out of --output"):
        write(heat_on(series), series, kinds=[kind])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda path: write_series(
                path, volume_of(), oblique_affine("LPS"), FrameOfReferenceUID=None
            ),
            "no frame of reference",
        ),
        (
            lambda path: write_series(
                path, volume_of(), oblique_affine("LPS"), StudyInstanceUID=None
            ),
            "StudyInstanceUID",
        ),
        (
            lambda path: [
                write_frames(path / f"{n}.dcm", volume_of(), oblique_affine("LPS"), [n])
                for n in range(3)
            ],
            "3 multi-frame files",
        ),
    ],
    ids=["frame of reference", "study", "files of frames"],
)
def test_what_objects_cannot_refer_to_is_refused(tmp_path: Path, make: Any, reason: str) -> None:
    make(tmp_path / "series")
    prediction = heat_on(tmp_path / "series")
    with pytest.raises(SourceError, match=reason):
        write(prediction, tmp_path / "series", kinds=["seg"])


def test_uneven_slices_are_refused_as_where_they_are_loaded(tmp_path: Path) -> None:
    series = write_series(
        tmp_path / "series", volume_of(), oblique_affine("LPS"), order=(0, 1, 2, 4, 5, 6)
    )
    with pytest.raises(ValueError, match="unevenly spaced slices"):
        read_source(series)


def test_a_heatmap_of_another_series_is_refused(oblique: Path, tmp_path: Path) -> None:
    moved = oblique_affine("LPS")
    moved[2, 3] += 1
    other = write_series(tmp_path / "other", volume_of(), moved)
    with pytest.raises(SourceError, match="does not lie on the slices"):
        write_objects(heat_on(oblique), read_source(other), ["seg"], tmp_path / "out")


def test_one_slice_has_objects(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", volume_of((*SHAPE[:2], 1)), oblique_affine("LPS"))
    image = load_volume(series)
    heat = image.clone()
    heat[:] = 0
    heat[0, 3, 2, 0] = 2.5
    files = write(predicted(heat, image), series)
    assert [errors for path in files.values() if (errors := errors_of(path))] == []
    assert float(hd.imread(files["pmap"]).get_frames().max()) == 2.5
