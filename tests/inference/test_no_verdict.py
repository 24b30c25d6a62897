"""A study without a score has no verdict: it is never "not anomalous"."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from stressed import make_model

from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.inference.cohort import CohortIncomplete, infer_cohort
from mcmiad_monai.inference.evaluation import evaluate
from mcmiad_monai.inference.inferer import SliceHeatmapInferer
from mcmiad_monai.predictor import load

WHOLE = (0.0, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.pt", slice_range=WHOLE)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A head, and a study with a speck of foreground in each slice, both with a lesion mask."""
    folder = tmp_path / "studies"
    rng = np.random.default_rng(0)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 48, 5)), indexing="ij")
    head = (x**2 + y**2 < 0.8) * (100 + 10 * rng.standard_normal(x.shape))
    speck = np.zeros_like(head)
    speck[20:22, 20:22] = 80 + 20 * rng.random((2, 2, 5))
    lesion = np.zeros(x.shape, dtype=np.uint8)
    lesion[20:22, 20:22, 2] = 1
    for name, values in (("head", head), ("speck", speck)):
        (folder / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), folder / name / "im.nii.gz")
        nib.save(nib.Nifti1Image(lesion, np.eye(4)), folder / name / "lesion.nii.gz")
    entries = [
        {"image": f"{n}/im.nii.gz", "label": f"{n}/lesion.nii.gz", "case": n}
        for n in ("head", "speck")
    ]
    (folder / "datalist.json").write_text(json.dumps({"testing": entries}))
    return folder / "datalist.json"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def require_no_verdict_of_the_speck(out: Path) -> None:
    scores = json.loads((out / "speck/speck_scores.json").read_text())
    assert scores["volume_score"] is scores["anomalous"] is None
    assert (scores["slices"], scores["warnings"]) == ([], ["nothing_looked_at"])
    summary = json.loads((out / "scores.json").read_text())
    assert (summary["studies"], summary["failed"], summary["nothing_looked_at"]) == (2, {}, 1)
    (row,) = (row for row in rows_of(out / "scores.csv") if row["case"] == "speck")
    assert (row["volume_score"], row["anomalous"], row["error"]) == ("", "", "")
    assert row["warnings"] == "nothing_looked_at"
    head = next(row for row in rows_of(out / "scores.csv") if row["case"] == "head")
    assert (float(head["volume_score"]) > 0, head["warnings"]) == (True, "")


def test_study_in_which_nothing_was_looked_at_has_no_verdict(
    model: Path, studies: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    predictor = load(model, device="cpu", engine="torch")
    cases = find_cases(studies)
    report = infer_cohort(predictor, cases, tmp_path / "out", preview=True, progress=False)
    report.finish()
    require_no_verdict_of_the_speck(tmp_path / "out")
    assert "study speck: no slice has enough foreground" in caplog.text
    assert "2 studies done, 0 failed, 1 with nothing_looked_at" in caplog.text
    found = predictor(studies.parent / "speck/im.nii.gz")
    assert found.score is found.anomalous is None
    assert found.warnings == ["nothing_looked_at"]
    assert "score=None" in repr(found)


def test_bundle_says_the_same_of_it(model: Path, studies: Path, tmp_path: Path) -> None:
    root = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    shutil.copy(model, root / "models/model.pt")
    given: dict[str, Any] = {"dataset_dir": str(studies), "output_dir": str(tmp_path / "out")}
    open_workflow(root, "inference", {**given, "device": "cpu", "progress": False}).run()
    require_no_verdict_of_the_speck(tmp_path / "out")


def test_evaluation_counts_it_and_gives_it_no_score(
    model: Path, studies: Path, tmp_path: Path
) -> None:
    predictor = load(model, device="cpu", engine="torch")
    report = evaluate(predictor, find_cases(studies), tmp_path, progress=False)
    report.finish()
    assert report.report["nothing_looked_at"] == 1
    head, speck = rows_of(tmp_path / "studies.csv")
    assert float(head["volume_score"]) > 0
    # its lesion was missed, and counts as that
    assert (speck["volume_score"], speck["anomalous_slices"]) == ("", "1")
    assert [volume.score for volume in report.figures.volumes][1] == 0


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_network_that_gives_no_numbers_is_refused(wrong: float) -> None:
    volume = MetaTensor(torch.rand(1, 1, 32, 32, 4) + 0.1)

    def network(images: torch.Tensor) -> torch.Tensor:
        maps = images[:, :1].clone()
        maps[-1, 0, 0, 0] = wrong
        return maps

    with pytest.raises(ValueError, match=r"NaN or infinity.*mcmiad verify"):
        SliceHeatmapInferer(size=32)(volume, network)


@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_study_fails_where_the_network_gives_no_numbers(
    model: Path, studies: Path, tmp_path: Path, command: str
) -> None:
    predictor = load(model, device="cpu", engine="torch")
    predictor.network = torch.nn.Threshold(10.0, torch.nan)  # every pixel is NaN
    run = {"infer": infer_cohort, "evaluate": evaluate}[command]
    report: Any = run(predictor, find_cases(studies), tmp_path, progress=False)
    with pytest.raises(CohortIncomplete, match="head: ValueError: the network gave NaN"):
        report.finish()
    assert not (tmp_path / "head").exists()
