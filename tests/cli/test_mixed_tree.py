"""``cases`` and ``infer`` agree on what can be read, and name what cannot."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from case_files import touch
from dicom_slices import without_preamble, write_slice
from stressed import make_model

from mcmiad_monai.cli.parser import main


def head(depth: int = 6) -> np.ndarray:
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (36, 40, depth)), indexing="ij")
    noise = np.random.default_rng(depth).standard_normal(x.shape)
    return np.asarray((x**2 + y**2 < 0.8) * (100 + 10 * noise))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kind of study that is found, and each kind of file that is not."""
    root = tmp_path_factory.mktemp("tree") / "studies"
    root.mkdir()
    values = head().astype("f4")
    nib.save(nib.Nifti1Image(values, np.eye(4)), root / "nifti.nii.gz")
    nib.save(nib.Nifti1Pair(values, np.eye(4)), root / "pair.img")
    (root / "packed.nii.bz2").write_bytes(bz2.compress(b"volume"))
    for k, plane in enumerate(np.moveaxis(head(5), 2, 0)):
        for folder in ("cd/DICOM/SE0", "bare"):
            path = root / folder / f"IM{k}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_slice(path, plane.T, (0, 0, 3.0 * k), modality="MR", spacing=(1, 1))
            if folder == "bare":
                without_preamble(path)
    write_slice(root / "stray.dcm", head(1)[:, :, 0].T, (0, 0, 0), modality="MR", spacing=(1, 1))
    (root / "stray.dcm").rename(root / "stray.dicom")
    (root / "cd" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    touch(root, "unclear/flair.nii.gz", "unclear/t1.nii.gz")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.pt", slice_range=(0.0, 1.0))


def test_cases_and_infer_agree_and_name_what_is_not_read(
    tree: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tree / "heatmaps"
    infer = ["infer", str(tree), "--bundle", str(model), "--out", str(out), "--device", "cpu"]
    for _ in range(2):  # the second run finds the results of the first
        assert main(["cases", str(tree), "--json"]) == 1
        cases = json.loads(capsys.readouterr().out)
        found = {case["case"] for case in cases if "refused" not in case}
        assert found == {"nifti", "pair", "SE0", "bare", "studies"}

        assert main(infer) == 1
        report = json.loads((out / "scores.json").read_text())
        assert {study["case"] for study in report["scores"]} == found
        assert set(report["failed"]) == {"unclear"}
        assert "holds 2 images (flair.nii.gz, t1.nii.gz)" in report["failed"]["unclear"]

        told = capsys.readouterr().err
        for name in ("packed.nii.bz2 (no image", "DICOMDIR (the index", "(of unclear/, which is"):
            assert name in told
        assert "4 files were not read: " in told
        assert "17 files with results of this program were skipped" in told


@pytest.mark.parametrize("name", ["stray.dicom", "bare/IM0"])
def test_single_dicom_file_is_read_whatever_its_name(
    tree: Path, model: Path, tmp_path: Path, name: str
) -> None:
    assert main(["cases", str(tree / name)]) == 0
    infer = ["infer", str(tree / name), "--bundle", str(model), "--out", str(tmp_path)]
    assert main([*infer, "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["failed"] == {}
