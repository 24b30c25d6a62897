"""`mcmiad infer --output …`: DICOM objects beside the other files, or instead of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_series import write_series
from small_phantoms import make_liver
from stressed import make_model

from mcmiad_monai.cli.parser import main
from mcmiad_monai.data.cases.find import CaseError, find_cases


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    return make_model(path, modality="liver_ct", slice_range=(0.0, 1.0), thresholds=(0.5, 0.5))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series of a liver."""
    root = tmp_path_factory.mktemp("studies")
    for seed, name in enumerate(("a", "b")):
        phantom, _ = make_liver(seed, lesion="dark", orientation="LPS")
        write_series(root / name, phantom.image, phantom.affine, SeriesInstanceUID=f"1.2.3.{seed}")
    return root


def infer(source: Path, model: Path, out: Path, *more: str) -> int:
    arguments = ["-q", "infer", str(source), "--bundle", str(model), "--out", str(out)]
    return main([*arguments, "--device", "cpu", *more])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_objects_lie_beside_the_other_files_and_the_scores_name_them(
    studies: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert infer(studies, model, out, "--output", "nifti,seg,pmap,sr") == 0
    endings = ("heatmap.nii.gz", "mask.nii.gz", "pmap.dcm", "scores.json", "seg.dcm", "sr.dcm")
    for name in ("a", "b"):
        assert names(out / name) == [f"{name}_{ending}" for ending in endings]
        scores = json.loads((out / name / f"{name}_scores.json").read_text())
        files = {kind: f"{name}_{kind}.dcm" for kind in ("seg", "pmap", "sr")}
        assert scores["dicom"] == {"compact": False, "bands": False, "files": files}
    series = {pydicom.dcmread(path).SeriesInstanceUID for path in out.rglob("*.dcm")}
    assert len(series) == 6
    report = json.loads((out / "scores.json").read_text())
    assert [study["dicom"]["files"]["seg"] for study in report["scores"]] == [
        "a_seg.dcm",
        "b_seg.dcm",
    ]


def test_a_later_result_leaves_no_file_of_an_earlier_one(
    studies: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert infer(studies / "a", model, out, "--output", "seg,sr") == 0
    assert names(out / "a") == ["a_scores.json", "a_seg.dcm", "a_sr.dcm"]
    nothing = ("--set", "mask_threshold=1000")
    assert infer(studies / "a", model, out, "--output", "nifti,seg", *nothing) == 0
    assert names(out / "a") == ["a_heatmap.nii.gz", "a_mask.nii.gz", "a_scores.json"]
    scores = json.loads((out / "a" / "a_scores.json").read_text())
    assert scores["dicom"]["files"] == {"seg": None}
    assert infer(studies / "a", model, out, "--output", "sr") == 0
    assert names(out / "a") == ["a_scores.json", "a_sr.dcm"]


@pytest.mark.parametrize("form", [[], ["--compact"]], ids=["plain", "compact"])
@pytest.mark.parametrize("kind", ["a_seg.dcm", "a_sr.dcm", "a_pmap.dcm"])
def test_continue_does_what_lacks_an_object(
    studies: Path, model: Path, tmp_path: Path, kind: str, form: list[str]
) -> None:
    out = tmp_path / "out"

    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in out.glob("*/*_scores.json")}

    wanted = ("--continue", "--output", "seg,sr,pmap", *form)
    assert infer(studies, model, out, *wanted) == 0
    first = written()
    assert infer(studies, model, out, *wanted) == 0
    assert written() == first
    damaged = out / "a" / kind
    damaged.write_bytes(damaged.read_bytes()[:-50])
    assert infer(studies, model, out, *wanted) == 0
    again = written()
    assert [again[n] == first[n] for n in ("a_scores.json", "b_scores.json")] == [False, True]
    assert infer(studies, model, out, *wanted, "--bands") == 0  # another form of the objects
    assert all(written()[name] != again[name] for name in again)


def test_objects_are_no_studies(studies: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert infer(studies / "a", model, out, "--output", "seg,pmap,sr") == 0
    with pytest.raises(CaseError, match="no images were found"):
        find_cases(out)


def test_a_study_without_series_fails_and_the_others_are_done(
    studies: Path, model: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(studies / "a", mixed / "a")
    phantom, _ = make_liver(7)
    (mixed / "n").mkdir()
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), mixed / "n" / "n.nii.gz")
    out = tmp_path / "out"
    assert infer(mixed, model, out, "--output", "nifti,seg") == 1
    report = json.loads((out / "scores.json").read_text())
    assert set(report["failed"]) == {"n"}
    assert "n.nii.gz is no DICOM series" in report["failed"]["n"]
    assert "a_seg.dcm" in names(out / "a")
    assert not (out / "n").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--output", "seg"], "none of 1 studies is DICOM"),
        (["--output", "seg,dcm"], "['dcm'] are no kinds of files"),
        (["--bands"], "add seg to --output"),
        (["--compact"], "--compact is for DICOM objects"),
    ],
)
def test_what_cannot_be_is_a_usage_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], reason: str
) -> None:
    nifti = tmp_path / "n.nii.gz"
    nib.save(nib.Nifti1Image(np.eye(4)[None].astype(np.float32), np.eye(4)), nifti)
    out = tmp_path / "out"
    try:
        code = infer(nifti, model, out, *more)
    except SystemExit as stop:  # of argparse
        code = int(stop.code or 0)
    assert code == 2
    assert reason in capsys.readouterr().err
    assert not out.exists()


def test_results_among_the_slices_are_refused(studies: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(studies / "a", tmp_path / "a")
    assert infer(tmp_path / "a", model, tmp_path, "--output", "seg") == 1
    report = json.loads((tmp_path / "scores.json").read_text())
    assert "among its own slices" in report["failed"]["a"]
    assert not list((tmp_path / "a").glob("*_seg.dcm"))
