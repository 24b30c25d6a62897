"""What inference leaves on disk: files that are whole, scores that name the right slice."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, SaveImaged
from oblique import OBLIQUE

from mcmiad_monai.calibration import Calibration, UnifiedCalibration
from mcmiad_monai.data.studies import StudyDataset
from mcmiad_monai.inference import writers
from mcmiad_monai.inference.cohort import CohortReport
from mcmiad_monai.inference.outputs import (
    AnomalyMaskd,
    KeepSliceScoresd,
    SaveStudyd,
    study_scores,
)
from mcmiad_monai.phantom.brain import make_phantom
from mcmiad_monai.transforms import as_heatmap, preprocessing


def calibration(slice_threshold: float = 2.0, volume_threshold: float = math.inf) -> Calibration:
    return Calibration(3.0, 0.005, slice_threshold, volume_threshold, 0.05, 1000, 40, 4, 4)


def heatmap(shape: tuple[int, int, int] = (5, 6, 4), case: str = "a") -> MetaTensor:
    values = torch.linspace(0, 2, math.prod(shape)).reshape(1, *shape)
    return MetaTensor(values, affine=torch.from_numpy(OBLIQUE), meta={"case": case, "space": "RAS"})


def save(folder: Path, pred: MetaTensor, **options: Any) -> dict[Any, Any]:
    """Save as the bundle's inference does."""
    data = AnomalyMaskd("pred")({"pred": pred, "slice_scores": torch.ones(pred.shape[3])})
    return SaveStudyd("pred", output_dir=folder, **options)(data)


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_files_are_named_by_the_case_and_have_values_and_oblique_affine(tmp_path: Path) -> None:
    pred = heatmap(case="p_07")
    pred.meta["filename_or_obj"] = "/data/p07/flair.nii.gz"
    done = save(tmp_path, pred)
    assert files_in(tmp_path) == [
        "p_07/p_07_heatmap.nii.gz",
        "p_07/p_07_heatmap_viewer.nii.gz",  # its grid is sheared
        "p_07/p_07_mask.nii.gz",
        "p_07/p_07_scores.json",
    ]
    saved = nib.load(tmp_path / "p_07/p_07_heatmap.nii.gz")
    mask = nib.load(tmp_path / "p_07/p_07_mask.nii.gz")
    np.testing.assert_array_equal(saved.get_fdata(), pred[0].numpy())
    np.testing.assert_array_equal(np.asarray(mask.dataobj), pred[0].numpy() > 1)
    for written, dtype in ((saved, np.float32), (mask, np.uint8)):
        assert written.get_data_dtype() == dtype
        np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-6)
        assert written.header.get_slope_inter() in ((None, None), (1.0, 0.0))
    assert json.loads((tmp_path / "p_07/p_07_scores.json").read_text()) == done["scores"]
    assert done["pred"] is pred


def test_servers_that_leave_out_savers_of_images_leave_it_out() -> None:
    assert isinstance(SaveStudyd(output_dir="out"), SaveImaged)


def test_cases_that_differ_after_a_dot_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for case in ("head.1.2", "head.1.3"):
        save(tmp_path, heatmap(case=case))
        assert (tmp_path / case / f"{case}_heatmap.nii.gz").is_file()
    assert len(files_in(tmp_path)) == 8


@pytest.mark.parametrize("fails_at", ["heatmap", "mask"])
def test_interrupted_write_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    save(tmp_path, heatmap())
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    write = writers._write_gzip

    def disk_full(image: Any, path: str | Path) -> None:
        if fails_at not in Path(path).name:
            write(image, path)
            return
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("mcmiad_monai.inference.writers._write_gzip", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, heatmap() * 2)
    after = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    assert after == before


@pytest.mark.parametrize(("name", "limit"), [("brain_mri", 0.5), ("liver_ct", 2.0)])
def test_verdict_is_by_the_thresholds_of_the_study_s_modality(
    tmp_path: Path, name: str, limit: float
) -> None:
    each = {"brain_mri": calibration(0.5), "liver_ct": calibration(2.0)}
    stored = UnifiedCalibration(each).to_dict()
    pred = heatmap()
    pred.meta |= {"modality": name, "modality_from": "the header (MR)"}
    scores = save(tmp_path, pred, calibration=stored)["scores"]
    assert (scores["modality"], scores["modality_from"]) == (name, "the header (MR)")
    assert {s["slice_threshold"] for s in scores["slices"]} == {limit}
    assert {s["anomalous"] for s in scores["slices"]} == {limit < 1.0}
    pred.meta["modality"] = "retina_oct"
    pred.meta["case"] = "b"
    with pytest.raises(ValueError, match="no thresholds for 'retina_oct'"):
        save(tmp_path, pred, calibration=stored)
    assert not (tmp_path / "b").exists()


def test_mask_is_one_strictly_above_the_threshold_on_a_grid_of_its_own() -> None:
    values = torch.tensor([0.0, 1.0, 1.001, 5.0]).reshape(1, 1, 2, 2)
    pred = MetaTensor(values, affine=torch.from_numpy(OBLIQUE), meta={"case": "a"})
    mask = AnomalyMaskd("pred")({"pred": pred})["mask"]
    assert mask.dtype == torch.uint8
    assert mask.flatten().tolist() == [0, 0, 1, 1]
    assert torch.equal(mask.affine, pred.affine)
    mask.affine[0, 0], mask.meta["case"] = 99, "other"
    assert (pred.affine[0, 0], pred.meta["case"]) == (OBLIQUE[0, 0], "a")
    strict = AnomalyMaskd("pred", threshold=2.5)({"pred": pred})["mask"]
    assert strict.flatten().tolist() == [0, 0, 0, 1]


def test_mask_of_a_tensor_without_geometry_is_refused() -> None:
    with pytest.raises(TypeError, match=r"without geometry.*to_tensor: true"):
        AnomalyMaskd("pred")({"pred": torch.zeros(1, 2, 2, 2)})


# slices stored upwards, downwards, and along the first and the second array axis
@pytest.mark.parametrize(
    ("orientation", "slice_axis"), [("LPS", 2), ("RPI", 2), ("ILP", 0), ("RSA", 1), ("AIL", 1)]
)
def test_slice_index_is_the_array_index_of_the_source_file(
    tmp_path: Path, orientation: str, slice_axis: int
) -> None:
    path = tmp_path / "s.nii.gz"
    phantom = make_phantom(5, shape=(24, 28, 8), orientation=orientation)
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), path)
    prepare = preprocessing("brain_mri")
    sample = StudyDataset([{"case": "s", "image": str(path)}], prepare)[0]
    canonical = sample["image"]
    warmth = torch.tensor([torch.nan, 0.5, 1.5, 7.0, 2.5, torch.nan, 3.5, 4.5])
    heat = torch.ones(canonical.shape) * torch.nan_to_num(warmth)  # last axis is the slices'
    sample["pred"] = as_heatmap(heat, canonical)
    sample["pred"].meta["slice_scores"] = warmth
    home = Compose(
        [
            KeepSliceScoresd("pred"),
            Invertd("pred", prepare, orig_keys="image", nearest_interp=False, to_tensor=True),
            AnomalyMaskd("pred"),
            SaveStudyd("pred", output_dir=tmp_path / "out", slice_axis=2),
        ]
    )
    done = home(sample)
    scores, restored = done["scores"], np.moveaxis(done["pred"][0].numpy(), slice_axis, 0)
    assert scores["slice_axis"] == slice_axis
    assert (scores["slices_scored"], scores["slices_skipped"]) == (6, 2)
    assert scores["volume_score"] == 7.0
    assert scores["modality"] == "brain_mri"
    on_disk = json.loads((tmp_path / "out/s/s_scores.json").read_text())
    assert on_disk == scores
    # the index finds the slice with the heat of that score in the array of the file
    stored = np.moveaxis(nib.load(path).get_fdata(), slice_axis, 0)
    assert restored.shape == stored.shape
    for entry in scores["slices"]:
        assert set(restored[entry["index"]].flat) == {entry["score"]}
    skipped = set(range(8)) - {entry["index"] for entry in scores["slices"]}
    assert all(not restored[k].any() for k in skipped)


def test_scores_by_hand_with_thresholds() -> None:
    pred, scores = heatmap((5, 6, 4)), torch.tensor([torch.nan, 2.0, 2.5, 1.0])
    pred.affine = torch.eye(4, dtype=torch.float64)
    found = study_scores(pred, scores, slice_axis=2, calibration=calibration(2.0, 2.25))
    assert found["volume_score"] == 2.5
    assert (found["volume_threshold"], found["anomalous"]) == (2.25, True)
    assert [s["index"] for s in found["slices"]] == [1, 2, 3]
    # a score at the threshold does not exceed it
    assert [s["anomalous"] for s in found["slices"]] == [False, True, False]
    assert {s["slice_threshold"] for s in found["slices"]} == {2.0}


def test_verdict_is_null_without_calibration_or_with_too_few_normals() -> None:
    scores = torch.tensor([1.0, 2, 3, 4])
    for known in (None, calibration(slice_threshold=math.inf)):
        found = study_scores(heatmap(), scores, slice_axis=2, calibration=known)
        assert found["volume_threshold"] is None
        assert found["anomalous"] is None
        assert {s["anomalous"] for s in found["slices"]} == {None}
        json.dumps(found, allow_nan=False)


def test_study_without_any_foreground_has_no_score() -> None:
    known = calibration(2.0, 2.25)
    found = study_scores(heatmap(), torch.full((4,), math.nan), slice_axis=2, calibration=known)
    assert (found["volume_score"], found["slices"]) == (None, [])
    assert (found["volume_threshold"], found["anomalous"]) == (2.25, None)
    assert (found["slices_scored"], found["slices_skipped"]) == (0, 4)


def study(case: str, scores: list[float]) -> dict[str, Any]:
    pred, found = heatmap((3, 3, len(scores)), case), torch.tensor(scores)
    return study_scores(pred, found, slice_axis=2, calibration=calibration())


class Cohort(Engine):
    """An engine whose batches are finished studies; a text is a failure, an exception a stop."""

    def __init__(self) -> None:
        super().__init__(self._step)
        self.failures: dict[str, str] = {}

    def _step(self, _engine: Engine, batch: Any) -> list[dict[str, Any]]:
        if isinstance(batch, BaseException):
            raise batch
        if isinstance(batch, tuple):
            self.failures[batch[0]] = batch[1]
            return []
        return [{"scores": batch}]


def test_report_holds_every_study_and_every_failure(tmp_path: Path) -> None:
    options: dict[str, Any] = {"calibration": calibration().to_dict()}
    engine, report = Cohort(), CohortReport(tmp_path, provenance={"commit": "abc"}, **options)
    report.attach(engine)
    error = 'VolumeError: x has 4 dimensions, a "3-D" volume is needed\nsecond line'
    engine.run([study("a", [1.0, math.nan, 3.0]), ("bad", error), study("b", [0.5])])

    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["studies"] == 3
    assert content["failed"] == {"bad": error}
    assert [s["case"] for s in content["scores"]] == ["a", "b"]
    assert content["provenance"] == {"commit": "abc"}
    assert Calibration.from_dict(content["calibration"]) == calibration()

    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["case"], r["slice"], r["slice_score"], r["anomalous"]) for r in rows] == [
        ("a", "2", "1", "False"),  # slices are stored downwards, canonical ones count upwards
        ("a", "0", "3", "True"),
        ("b", "0", "0.5", "False"),
        ("bad", "", "", ""),
    ]
    assert rows[0]["volume_score"] == "3"
    assert rows[-1]["error"] == error
    assert files_in(tmp_path) == ["scores.csv", "scores.json"]


def test_report_is_written_also_if_the_cohort_is_stopped(tmp_path: Path) -> None:
    engine, report = Cohort(), CohortReport(tmp_path)
    report.attach(engine)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run([study("a", [1.0]), RuntimeError("out of memory"), study("b", [1.0])])
    content = json.loads((tmp_path / "scores.json").read_text())
    assert [s["case"] for s in content["scores"]] == ["a"]


def test_finish_is_an_exit_code_of_one_only_if_a_study_failed(tmp_path: Path) -> None:
    report = CohortReport(tmp_path)
    report.finish()
    report.failures = {"b": "ValueError: no"}
    with pytest.raises(SystemExit) as caught:
        report.finish()
    # Python prints a text on standard error and exits with 1
    assert caught.value.code == "1 of 1 studies failed:\n  b: ValueError: no"
