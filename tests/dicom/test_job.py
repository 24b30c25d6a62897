"""`mcmiad dicom`: a folder of DICOM in, a folder of DICOM and ``result.json`` out."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("highdicom", reason="highdicom comes with the extra `dicom`")

from archives import receiver, write_object
from brain_series import small_bundle, write_brain
from cli_errors import refused

from mcmiad_monai.cli.parser import main
from mcmiad_monai.dicom.mercure import NOTIFICATION, is_success, task_settings
from mcmiad_monai.dicom.series import find_series_below

SR = "1.2.840.10008.5.1.4.1.1.88"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_bundle(tmp_path_factory.mktemp("model") / "bundle"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two MR series, one of which lacks a slice, a CT and a report, in one folder, files mixed."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, modality in ((1, "MR"), (2, "MR"), (3, "CT")):
        series = write_brain(tmp_path / str(number), number, modality=modality)
        for file in sorted(series.iterdir()):
            if (number, file.stem) != (2, "slice_003"):
                shutil.copy(file, folder / f"1.2.40.{number}#{file.stem}.dcm")
    write_object(folder / "report", sop_class=f"{SR}.33", Modality="SR", SeriesInstanceUID="1.2.9")
    (folder / "broken.dcm").write_bytes(b"no DICOM")
    return folder


def result_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "result.json").read_text())
    return content


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_one_bad_series_does_not_stop_the_others(
    bundle: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = content_of(study), tmp_path / "out"
    for path in (study, *study.iterdir()):
        path.chmod(stat.S_IREAD | (stat.S_IEXEC if path.is_dir() else 0))
    code = main(["dicom", str(study), str(out), "--bundle", bundle, "--output", "seg,sr"])
    assert code == 1
    assert content_of(study) == before
    result = result_of(out)
    assert result["counts"] == {"done": 1, "refused": 2, "failed": 0}
    first, second, third = result["series"]
    assert (first["series"], first["status"]) == ("1.2.40.1", "done")
    assert first["anomalous"] == (first["volume_score"] > first["volume_threshold"])
    assert "unevenly spaced" in second["reason"]
    assert "CT" in third["reason"]
    assert "/" not in second["reason"].partition(" has ")[0]
    assert result["passed_over"] == [{"series": "1.2.9", "reason": "no images (SR)"}]
    assert sum(result["not_read"].values()) == 1
    assert result["not_done"] == []
    written = {file.name for file in out.glob("*.dcm")}
    assert written == set(first["files"].values())
    for kind, name in first["files"].items():
        header = pydicom.dcmread(out / name)
        assert header.Modality == kind.upper()
        assert header.StudyInstanceUID == first["study"]
        assert name == f"{header.SeriesInstanceUID}#{header.SOPInstanceUID}.dcm"
    assert "Secret" not in capsys.readouterr().err + (out / "result.json").read_text()


def test_rerun_replaces_and_results_among_the_input_are_passed_over(
    bundle: str, tmp_path: Path
) -> None:
    source, out = write_brain(tmp_path / "in", 1), tmp_path / "out"
    assert main(["dicom", str(source), str(out), "--bundle", bundle, "--output", "sr"]) == 0
    (first,) = out.glob("*.dcm")
    shutil.copy(first, source / "result.dcm")
    assert main(["dicom", str(source), str(out), "--bundle", bundle, "--output", "sr"]) == 0
    assert list(out.glob("*.dcm")) == [first]
    assert result_of(out)["passed_over"][0]["reason"] == "a result of this program"
    command = ["dicom", str(source), str(out), "--bundle", bundle, "--output", "sr"]
    assert main([*command, "--set", "mask_threshold=1.01"]) == 0
    (second,) = out.glob("*.dcm")
    assert second != first


def test_results_are_sent_and_what_is_not_can_be_sent_again(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_brain(tmp_path / "in", 1), tmp_path / "out"
    with receiver() as pacs:
        target = f"PACS@127.0.0.1:{pacs.port}"
        pacs.codes = Refusing()
        command = ["dicom", str(source), str(out), "--bundle", bundle, "--output", "seg,sr"]
        assert main([*command, "--send", target]) == 1
        told = capsys.readouterr().err
        assert "2 of 2 files were written and not sent" in told
        again = re.search(r"mcmiad (send \S+ --to \S+)", told)
        assert again is not None
        assert len(result_of(out)["sent"]["unsent"]) == 2
        pacs.codes = {}
        assert main(again[1].split()) == 0
        assert len(set(pacs.instances)) == len(pacs.instances) == 2
        assert main(again[1].split()) == 0
        assert len(pacs.instances) == 2


class Refusing(dict[str, list[int]]):
    """Refuses every instance."""

    def get(self, *_: Any) -> Any:
        return [0xC000]


def test_infer_sends_its_objects_once(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_brain(tmp_path / "in", 1), tmp_path / "out"
    command = ["infer", str(source), "--bundle", bundle, "--out", str(out)]
    assert "--output" in refused(capsys, *command, "--send", "PACS@127.0.0.1:1")
    with receiver() as pacs:
        command += ["--output", "seg,sr", "--send", f"PACS@127.0.0.1:{pacs.port}", "--continue"]
        assert main(command) == 0
        assert main(command) == 0
        assert len(pacs.instances) == 2


def with_task(folder: Path, settings: dict[str, Any]) -> None:
    task = {"id": "1", "info": {}, "process": {"module_name": "m", "settings": settings}}
    (folder / "task.json").write_text(json.dumps(task))


def test_mercure_is_served_by_its_variables(
    bundle: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("MERCURE_IN_DIR", str(study))
    monkeypatch.setenv("MERCURE_OUT_DIR", str(out))
    monkeypatch.setenv("MCMIAD_BUNDLE", bundle)
    with_task(study, {"output": ["sr"]})
    assert main(["dicom"]) == 0  # with another code mercure drops the results of the good series
    result = result_of(out)
    assert list(result["series"][0]["files"]) == ["sr"]
    told = result[NOTIFICATION]
    assert told["requested"] is bool(result["series"][0]["anomalous"])
    assert "1 done, 2 refused" in told["text"]
    assert "not for diagnosis" in told["text"]


@pytest.mark.parametrize(
    ("counts", "passed", "success"),
    [
        ({"done": 1, "refused": 3, "failed": 0}, 0, True),
        ({"done": 1, "refused": 0, "failed": 1}, 0, False),
        ({"done": 0, "refused": 1, "failed": 0}, 0, False),
        ({"done": 0, "refused": 0, "failed": 0}, 2, True),
    ],
)
def test_mercure_takes_results_where_nothing_failed(
    counts: dict[str, int], passed: int, success: bool
) -> None:
    content = {"counts": counts, "series": [0] * sum(counts.values()), "passed_over": [0] * passed}
    assert is_success(content) is success


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"sigma": 7}, "sigma, which are not known"), ({"notify": "yes"}, "must be of type bool")],
)
def test_settings_that_are_not_known_are_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with_task(tmp_path, settings)
    with pytest.raises(ValueError, match=words):
        task_settings(tmp_path)


def test_task_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert task_settings(tmp_path) == {}
    (tmp_path / "task.json").write_text('{"process": [1, 2]}')
    with pytest.raises(ValueError, match="cannot be read as a task of mercure"):
        task_settings(tmp_path)


def test_folders_that_cannot_be_used_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    assert "is no folder" in refused(capsys, "dicom", str(tmp_path / "none"), out)
    (tmp_path / "in").mkdir()
    assert "no DICOM series" in refused(capsys, "dicom", str(tmp_path / "in"), out)
    write_brain(tmp_path / "in", 1)
    inside = str(tmp_path / "in" / "out")
    assert "lie in each other" in refused(capsys, "dicom", str(tmp_path / "in"), inside)
    assert "no model is named" in refused(capsys, "dicom", str(tmp_path / "in"), out)
    assert "name a folder IN" in refused(capsys, "dicom")
    monkeypatch.setenv("MERCURE_IN_DIR", str(tmp_path / "in"))
    assert "MERCURE_OUT_DIR is not set" in refused(capsys, "dicom")
    assert not Path(out).exists()


def test_instance_that_lies_there_twice_is_one(tmp_path: Path) -> None:
    write_brain(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (series,), unread = find_series_below(tmp_path)
    assert len(series.files) == 8
    assert unread == {}
