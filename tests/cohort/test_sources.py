"""Studies of a cohort: from trees, tables and archives, each once and under a name of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_slices import write_slice
from orthanc_server import OrthancServer, missing_orthanc
from stressed import make_model
from stub_archive import StubArchive, running, series

from mcmiad_monai.cli.parser import main
from mcmiad_monai.cohort import sources
from mcmiad_monai.cohort.results import open_results
from mcmiad_monai.cohort.sources import on_disk, studies_of
from mcmiad_monai.data.cases.find import CaseError, find_cases
from mcmiad_monai.dicom.asking import ArchiveError
from mcmiad_monai.files.leftovers import partial_path
from mcmiad_monai.phantom.brain import make_phantom
from mcmiad_monai.transforms.checks import VolumeError

needs_orthanc = pytest.mark.skipif(bool(missing_orthanc()), reason=str(missing_orthanc()))


def _write_series(folder: Path, number: int = 1, slices: int = 3, patient: str = "") -> Path:
    folder.mkdir(parents=True)
    for k in range(slices):
        plane = np.full((12, 16), 40 * k)
        more: dict[str, Any] = {"modality": "MR", "number": number, "patient": patient}
        write_slice(folder / f"{k}.dcm", plane, (0, 0, 3.0 * k), **more)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """NIfTI and DICOM mixed, at depths from 1 to 5."""
    root = tmp_path / "tree"
    for file in ("top.nii.gz", "site/p1/day1/flair.nii", "site/p2/flair.nii.gz", "a/b/c/d/x.nrrd"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    _write_series(root / "site" / "p1" / "day2" / "mr", 1, patient="Doe 1")
    _write_series(root / "dicom" / "p3" / "s" / "t" / "u", 2)
    (root / "site" / "notes.txt").touch()
    return root


@pytest.fixture
def archive() -> Iterator[StubArchive]:
    pytest.importorskip("dicomweb_client", reason="dicomweb-client comes with the extra `dicom`")
    stub = StubArchive([series(f"1.2.3.{k}", patient="Doe 1") for k in (1, 2)])
    with running(stub):
        yield stub


def test_mixed_tree_is_found_whole(tree: Path) -> None:
    found = {str(Path(case["image"]).relative_to(tree)): case for case in studies_of([tree])}
    assert set(found) == {
        *("top.nii.gz", "site/p1/day1/flair.nii", "site/p2/flair.nii.gz", "a/b/c/d/x.nrrd"),
        *("site/p1/day2/mr", "dicom/p3/s/t/u"),
    }
    names = [case["case"] for case in found.values()]
    assert len(set(names)) == len(names)
    assert found["site/p1/day2/mr"]["patient"] == sources.hashed_patient("Doe 1")


def test_several_sources_share_no_name_and_no_study(
    tree: Path, archive: StubArchive, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,case\ntree/top.nii.gz,top\nother/top.nii.gz,top2\nother/b.nii.gz,p2\n")
    datalist = tmp_path / "d.json"
    datalist.write_text(json.dumps({"test": ["other/top.nii.gz"]}))
    (tmp_path / "other").mkdir()
    for name in ("top", "b"):
        (tmp_path / "other" / f"{name}.nii.gz").touch()
    found = list(studies_of([tree, table, datalist, archive.url, archive.url + "/"]))
    images = [case["image"] for case in found]
    assert len(images) == len(set(images)) == 6 + 2 + 2
    assert len({case["case"].lower() for case in found}) == len(found)
    assert sum("/series/" in image for image in images) == 2


def test_table_gives_the_studies_of_infer_one_by_one(tree: Path) -> None:
    table = tree / "t.csv"
    table.write_text("path,case,patient\ntop.nii.gz,a,Doe 1\nno.nii.gz,b,\n")
    found, of_infer = list(studies_of([table])), find_cases(table)
    assert [case["case"] for case in found] == [case["case"] for case in of_infer] == ["a", "b"]
    assert "does not exist" in found[1]["refused"]
    # the table of results tells no names
    assert found[0]["patient"] == sources.hashed_patient("Doe 1")


def test_modality_of_all_studies_is_put_into_each(tree: Path, archive: StubArchive) -> None:
    found = list(studies_of([tree, archive.url], study_modality="liver_ct", modality="unified"))
    assert {case["modality"] for case in found} == {"liver_ct"}
    assert archive.asked[0][1]["Modality"] == "CT"


def test_query_without_an_archive_is_refused(tree: Path) -> None:
    with pytest.raises(CaseError, match="--query is for DICOMweb addresses"):
        list(studies_of([tree], query=[("Modality", "MR")]))


def test_study_of_files_is_where_it_is(tmp_path: Path) -> None:
    case = {"case": "a", "image": str(tmp_path / "a.nii.gz")}
    with on_disk(case) as here:
        assert here == case


def test_fetched_series_is_removed_whatever_happens(archive: StubArchive, tmp_path: Path) -> None:
    for file in _write_series(tmp_path / "in").iterdir():
        archive.files[str(pydicom.dcmread(file).SOPInstanceUID)] = file
    (tmp_path / "out").mkdir()
    abandoned = partial_path(tmp_path / "out" / "series")
    abandoned.with_name(abandoned.name.replace(f"-{os.getpid()}-", "-99999999-")).mkdir()
    case = next(studies_of([archive.url]))
    with on_disk(case, within=tmp_path / "out") as here:
        folder = Path(here["image"])
        assert len(list(folder.iterdir())) == 3
        assert folder.parent.stat().st_mode & 0o077 == 0
        assert len(list((tmp_path / "out").iterdir())) == 1  # what a killed run left is gone
    with (
        pytest.raises(VolumeError, match=f"^{archive.url}/studies/1.2.3/series/1.2.3.1 is no"),
        on_disk(case, within=tmp_path / "out") as here,
    ):
        raise VolumeError(f"{here['image']} is no volume.")
    archive.faults = [404]
    with pytest.raises(ArchiveError), on_disk(case, within=tmp_path / "out"):
        pytest.fail("it was not fetched")
    assert not list((tmp_path / "out").iterdir())


def _send_brains(orthanc: OrthancServer, folder: Path) -> None:
    """Two MR series of phantoms, and a CT."""
    for number, modality in enumerate(("MR", "MR", "CT"), 1):
        image = make_phantom(number, shape=(40, 48, 10), orientation="LPS").image
        (folder / str(number)).mkdir(parents=True)
        for k in range(10):
            path = folder / str(number) / f"{k}.dcm"
            more: dict[str, Any] = {"modality": modality, "number": number}
            plane = image[:, :, k].T.round()
            write_slice(path, plane, (0, 0, 4.0 * k), patient="Doe 1", **more)
        orthanc.send(*sorted((folder / str(number)).iterdir()))


@needs_orthanc
def test_infer_reads_an_archive_as_the_files_that_were_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dicomweb_client", reason="dicomweb-client comes with the extra `dicom`")
    (tmp_path / "tmp").mkdir()
    get_temp_dir()  # Python keeps one for its processes, which must outlive this test
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    model = make_model(tmp_path / "model.pt")
    how = ["--bundle", str(model), "-q", "--json"]
    with OrthancServer(tmp_path / "orthanc") as orthanc:
        _send_brains(orthanc, tmp_path / "in")
        url = f"{orthanc.url}/dicom-web"
        assert main(["cases", url, "--query", "Modality=CT", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 1
        assert main(["infer", url, *how, "--out", str(tmp_path / "out")]) == 0
        fetched = json.loads(capsys.readouterr().out)["scores"]
        assert main(["infer", url, *how, "--out", str(tmp_path / "o2"), "--continue"]) == 2
        assert "Use mcmiad screen" in capsys.readouterr().err
        screen = ["screen", url, "--query", "Modality=MR", *how[:2], "--device", "cpu", "-q"]
        assert main([*screen, "--workers", "1", "--out", str(tmp_path / "cohort")]) == 0
        objects = [*how, "--output", "sc", "--out", str(tmp_path / "objects")]
        assert main(["infer", url, *objects]) == 0
        referred = json.loads(capsys.readouterr().out)["scores"]
    assert all(study["dicom"]["files"]["sc"] for study in referred)
    assert len(list((tmp_path / "objects").rglob("*_sc.dcm"))) == 2
    with open_results(tmp_path / "cohort") as table:
        screened = table.execute('SELECT "case", status, score FROM results').fetchall()
    assert {(name, status) for name, status, _ in screened} == {
        (study["case"], "done") for study in fetched
    }
    scores = {study["case"]: study["volume_score"] for study in fetched}
    assert {name: score for name, _, score in screened} == pytest.approx(scores)
    shutil.rmtree(tmp_path / "in" / "3")
    assert main(["infer", str(tmp_path / "in"), *how, "--out", str(tmp_path / "files")]) == 0
    sent = json.loads(capsys.readouterr().out)["scores"]
    assert len(fetched) == len(sent) == 2
    key = "volume_score"
    np.testing.assert_allclose(sorted(s[key] for s in fetched), sorted(s[key] for s in sent))
    for study in fetched:
        assert (tmp_path / "out" / study["case"] / f"{study['case']}_heatmap.nii.gz").is_file()
        assert str(tmp_path / "tmp") not in json.dumps(study)
    assert not list((tmp_path / "tmp").iterdir())


def test_commands_that_read_files_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "https://host/dicom-web", "--out", "x"])
    assert stop.value.code == 2
    assert "this command reads files; mcmiad infer" in capsys.readouterr().err
