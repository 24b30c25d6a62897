"""Series of an archive: every page is seen, what passes is waited for, errors are in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_slices import write_slice
from orthanc_server import OrthancServer, missing_orthanc
from stub_archive import StubArchive, running, series

from mcmiad_monai.data.cases.names import CaseError
from mcmiad_monai.data.cases.patients import hashed_patient
from mcmiad_monai.dicom import asking, web
from mcmiad_monai.dicom.asking import ArchiveError
from mcmiad_monai.dicom.web import fetch_series, find_series
from mcmiad_monai.transforms.readers import read_image

pytest.importorskip("dicomweb_client", reason="dicomweb-client comes with the extra `dicom`")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and no login of the user's."""
    monkeypatch.setattr(asking, "WAIT", 0.01)
    for name in ("TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"MCMIAD_DICOMWEB_{name}", raising=False)


@pytest.fixture
def archive() -> Iterator[StubArchive]:
    stub = StubArchive([series(f"1.2.{k}", patient="Doe 1") for k in range(7)])
    with running(stub):
        yield stub


@pytest.fixture
def of_files(archive: StubArchive, tmp_path: Path) -> StubArchive:
    """The same, of which series 1.2.3.1 has three instances."""
    for k in range(3):
        path = tmp_path / f"{k}.dcm"
        write_slice(path, np.full((12, 16), 40 * k), (0, 0, 3.0 * k), patient="Doe 1")
        archive.files[str(pydicom.dcmread(path).SOPInstanceUID)] = path
    return archive


def _series_of(stub: StubArchive) -> str:
    return f"{stub.url}/studies/1.2.3/series/1.2.3.1"


@pytest.mark.parametrize("cap", [1, 3, 7, 1000])
def test_all_pages_are_seen_however_few_results_one_has(
    archive: StubArchive, cap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.cap = cap
    monkeypatch.setattr(web, "PAGE", 5)
    found = [case["image"] for case in find_series(archive.url + "/")]
    assert found == [f"{archive.url}/studies/1.2.3/series/1.2.{k}" for k in range(7)]


def test_archive_without_offsets_is_no_endless_loop(
    archive: StubArchive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive.offsets = False
    assert len(list(find_series(archive.url))) == 7
    assert "no further pages" in caplog.text
    monkeypatch.setattr(web, "PAGE", 5)
    with pytest.raises(ArchiveError, match=r"same 5 results.*--query"):
        list(find_series(archive.url))


def test_case_is_named_by_its_series_and_shows_no_patient(archive: StubArchive) -> None:
    first, second = list(find_series(archive.url))[:2]
    assert first["case"] != second["case"]
    assert first["case"].startswith("series_")
    assert first["patient"] == second["patient"] == hashed_patient("Doe 1")
    assert "Doe" not in str(first)
    assert "modality" not in first
    assert next(find_series(archive.url, modality="unified"))["modality"] == "brain_mri"


def test_what_is_no_study_is_skipped_and_counted(
    archive: StubArchive, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mcmiad_monai")
    ours = series("9.5", "MR", description="Heatmap. Research, not for diagnosis")
    archive.series = [series("9.1", "SEG"), series("9.2", "SR"), series("9.3", "SR"), ours]
    archive.series += [series("9.4", ""), series("1.2", "CT")]
    (case,) = find_series(archive.url)
    assert case["image"].endswith("/series/1.2")
    assert "2 SR, 1 SEG, 1 results of this program, 1 of no modality" in caplog.text


def test_archive_is_asked_for_the_kind_of_the_model_unless_the_query_says(
    archive: StubArchive,
) -> None:
    list(find_series(archive.url, [("StudyDate", "20260101-20261231")], modality="liver_ct"))
    asked = archive.asked[0][1]
    assert asked["Modality"] == "CT"
    assert asked["StudyDate"] == "20260101-20261231"
    list(find_series(archive.url, [("Modality", "MR")], modality="liver_ct"))
    assert archive.asked[-1][1]["Modality"] == "MR"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([("Modalty", "MR")], "'Modalty' is no attribute of DICOM"),
        ([("Modality", "MR"), ("Modality", "CT")], "Modality is asked for twice"),
    ],
)
def test_query_that_cannot_be_asked_is_refused(
    archive: StubArchive, query: Any, message: str
) -> None:
    with pytest.raises(CaseError, match=message):
        list(find_series(archive.url, query))
    assert not archive.asked


def test_nothing_found_says_what_was_asked(archive: StubArchive) -> None:
    archive.series = []
    with pytest.raises(CaseError, match=r"no series.*Modality=MR.*--query"):
        list(find_series(archive.url, modality="brain_mri"))


def test_uid_that_is_a_path_never_becomes_one(of_files: StubArchive, tmp_path: Path) -> None:
    of_files.series = [series("../../1")]
    with pytest.raises(ArchiveError, match="without a valid UID"):
        list(find_series(of_files.url))
    of_files.files = {"../escaped": next(iter(of_files.files.values()))}
    (tmp_path / "in").mkdir()
    with pytest.raises(ArchiveError, match="without a valid UID"):
        fetch_series(_series_of(of_files), tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


@pytest.mark.parametrize("faults", [[503, 500, 429], ["cut"], [None, 503, "cut", 502], ["slow"]])
def test_faults_that_pass_are_waited_for(
    of_files: StubArchive, tmp_path: Path, faults: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "TIMEOUT", (5.0, 0.4))
    of_files.faults = faults
    (tmp_path / "s").mkdir()
    fetch_series(_series_of(of_files), tmp_path / "s")
    values = read_image(tmp_path / "s").values
    assert values.shape == (16, 12, 3)
    np.testing.assert_array_equal(values[0, 0], [0, 40, 80])


@pytest.mark.parametrize(
    ("fault", "times", "message"),
    [
        (503, 5, r"answers 503 \(5 tries\)"),
        ("slow", 5, r"no answer within 0.1 s \(5 tries\)"),
        (401, 1, "refuses the login .401.; set MCMIAD_DICOMWEB_TOKEN"),
        (404, 1, "nothing there .404."),
        (400, 1, "answers 400"),
    ],
)
def test_errors_are_in_words_without_the_question(
    archive: StubArchive, fault: Any, times: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "TIMEOUT", (5.0, 0.1))
    monkeypatch.setenv("MCMIAD_DICOMWEB_TOKEN", "s3cret")
    archive.faults = [fault] * 9
    with pytest.raises(ArchiveError, match=message) as caught:
        list(find_series(archive.url, [("PatientName", "Miller^Ann")]))
    assert len(archive.asked) == times
    assert archive.asked[0][1]["Authorization"] == "Bearer s3cret"
    assert "Miller" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_password_of_the_environment_is_sent(
    archive: StubArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCMIAD_DICOMWEB_USER", "ann")
    monkeypatch.setenv("MCMIAD_DICOMWEB_PASSWORD", "pass")
    next(find_series(archive.url))
    assert archive.asked[0][1]["Authorization"] == "Basic YW5uOnBhc3M="


def test_page_of_a_website_is_no_archive(archive: StubArchive) -> None:
    archive.page = lambda *_: b"<html></html>"  # type: ignore[method-assign]
    with pytest.raises(ArchiveError, match="is it a DICOMweb address"):
        list(find_series(archive.url))


def test_another_instance_than_asked_for_is_refused(of_files: StubArchive, tmp_path: Path) -> None:
    of_files.files = dict.fromkeys(of_files.files, next(iter(of_files.files.values())))
    with pytest.raises(ArchiveError, match="another instance"):
        fetch_series(_series_of(of_files), tmp_path)


def test_deleted_series_and_other_addresses_are_told(archive: StubArchive, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no instances"):
        fetch_series(_series_of(archive), tmp_path)
    with pytest.raises(CaseError, match="not the address of a series"):
        fetch_series(archive.url, tmp_path)


@pytest.mark.skipif(bool(missing_orthanc()), reason=str(missing_orthanc()))
def test_orthanc_gives_series_as_they_were_stored(tmp_path: Path) -> None:
    """Page by page, by a query, in the transfer syntax in which they came."""
    (tmp_path / "in").mkdir()
    planes = np.random.default_rng(0).integers(0, 400, (4, 20, 24)) * 2
    for number, modality in enumerate(("MR", "CT", "SR"), 1):
        for k, plane in enumerate(planes):
            path = tmp_path / "in" / f"{number}_{k}.dcm"
            more = {"modality": modality, "number": number, "patient": "Doe 1"}
            write_slice(path, plane, (0, 0, 3.0 * k), **more)
            if modality == "CT":
                dataset = pydicom.dcmread(path)
                dataset.compress(pydicom.uid.RLELossless)
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
                dataset.save_as(path)
    with OrthancServer(tmp_path / "orthanc") as orthanc:
        orthanc.send(*sorted((tmp_path / "in").iterdir()))
        found = list(find_series(f"{orthanc.url}/dicom-web"))
        assert len(found) == 2
        (case,) = find_series(f"{orthanc.url}/dicom-web", [("Modality", "CT")])
        (tmp_path / "out").mkdir()
        fetch_series(case["image"], tmp_path / "out")
        with pytest.raises(CaseError, match="no series"):
            list(find_series(f"{orthanc.url}/dicom-web", [("StudyDate", "19000101-19001231")]))
    files = list((tmp_path / "out").iterdir())
    assert len(files) == 4
    syntax = pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID
    assert syntax == pydicom.uid.RLELossless
    np.testing.assert_array_equal(read_image(tmp_path / "out").values.T, planes)
