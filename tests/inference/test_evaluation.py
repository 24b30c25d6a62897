"""Figures on studies with masks, checked by hand and against scikit-learn."""

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
from monai.data import MetaTensor
from sklearn.metrics import roc_auc_score
from stressed import make_model

from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.inference.cohort import CohortIncomplete
from mcmiad_monai.inference.evaluation import EvaluationReport, counted_slices, dice, evaluate
from mcmiad_monai.predictor import load

SKIPPED = math.nan
CROPPED: dict[str, Any] = {"field_of_view": "foreground", "context": 3}


def make_item(
    scores: list[float],
    lesions: list[int],
    *,
    case: str = "a",
    plane: tuple[int, int] = (3, 4),
    axis: int = 2,
    anomalous: bool | None = None,
) -> dict[str, Any]:
    """A study whose slices are flat: heat equals the score, and a lesion fills its slice."""
    slice_scores = torch.tensor(scores, dtype=torch.float32)
    heat = torch.nan_to_num(slice_scores).expand(1, *plane, -1)
    truth = torch.zeros(len(scores))
    truth[lesions] = 1
    volumes = [heat, truth.expand(1, *plane, -1), (heat > 0).float()]
    pred, label, image = (v.movedim(3, 1 + axis).contiguous() for v in volumes)
    meta = {"case": case, "slice_scores": slice_scores, "anomalous": anomalous}
    return {"pred": MetaTensor(pred, meta=meta), "label": label, "image": image}


def reported(tmp_path: Path, *items: dict[str, Any], **options: Any) -> tuple[Any, list[Any]]:
    """Contents of ``metrics.json`` and rows of ``studies.csv`` of studies."""
    report = EvaluationReport(tmp_path, **{"axis": 2, **options})
    for item in items:
        report.add(item)
    report.write({})
    with (tmp_path / "studies.csv").open(newline="") as file:
        return json.loads((tmp_path / "metrics.json").read_text()), list(csv.DictReader(file))


def figures(*items: dict[str, Any], axis: int = 2, **options: Any) -> dict[str, float]:
    """Figures of studies that come one at a time."""
    report = EvaluationReport("unused", axis=axis, **options)
    for item in items:
        report.add(item)
    return report.figures.compute()


def test_volume_auroc_is_of_the_highest_slices_and_of_any_lesion() -> None:
    found = figures(
        make_item([1, 9], [0]),  # its highest slice is a normal one, and still it is found
        make_item([2, 3], []),
        make_item([2, 2.5], [1]),
        make_item([0.5, 0.1], []),
    )
    assert found["volume_auroc"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pixel_auroc_agrees_with_scikit_learn(axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    items, pixels = [], []
    for case in ("a", "b"):
        shape = torch.tensor([6, 7, 8]).roll(axis + 1).tolist()  # 8 slices, on the slice axis
        label = (torch.rand(1, *shape, generator=generator) > 0.8).float()
        heat = torch.rand(1, *shape, generator=generator) + 0.3 * label
        image = (torch.rand(1, *shape, generator=generator) > 0.3).float()
        scores = torch.arange(8.0)
        scores[2] = torch.nan
        label.select(1 + axis, 2).zero_()
        meta = {"case": case, "slice_scores": scores}
        items.append({"pred": MetaTensor(heat, meta=meta), "label": label, "image": image})
        kept = [k for k in range(8) if k != 2]
        pixels.append(
            [v.movedim(1 + axis, 0)[kept].flatten().numpy() for v in (heat, label, image)]
        )
    found = figures(*items, axis=axis)
    heat_, label_, image_ = (np.concatenate(parts) for parts in zip(*pixels, strict=True))
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(label_, heat_), abs=1e-3)
    inside = (image_ > 0) | (label_ > 0)
    expected = roc_auc_score(label_[inside], heat_[inside])
    assert found["pixel_auroc_foreground"] == pytest.approx(expected, abs=1e-3)


def test_slices_outside_the_range_are_no_part_of_any_auroc() -> None:
    inner, lesions = [2.0, 4.0, 3.0, 1.0], [2, 3]
    # ten slices, of which [3, 7) are in the range; outside, lesions are cold and normals hot
    outer = make_item([9, 9, 0, *inner, 0, 0, 9], [2, *(3 + k for k in lesions), 7, 8])
    found = figures(outer, make_item([0.5] * 10, []), slice_range=(0.3, 0.7))
    expected = figures(make_item(inner, lesions), make_item([0.5] * 4, []))
    assert found == expected
    # normals 2, 4 and four of 0.5, lesions 3 and 1: of twelve pairs 1 < 2, 1 < 4, 3 < 4 are wrong
    assert found["slice_auroc"] == pytest.approx(9 / 12)


def test_skipped_normal_slices_are_left_out_of_every_figure() -> None:
    bare = figures(make_item([1, 3, 2, 4], [1, 2]))
    padded = figures(make_item([SKIPPED, 1, 3, 2, 4, SKIPPED, SKIPPED], [2, 3]))
    assert bare["slice_auroc"] == pytest.approx(1 / 2)
    assert padded["slice_auroc"] == bare["slice_auroc"]
    assert padded["pixel_auroc"] == bare["pixel_auroc"]
    assert padded["pixel_auroc_foreground"] == bare["pixel_auroc_foreground"]


def test_lesion_in_a_skipped_slice_counts_as_missed() -> None:
    found = figures(make_item([SKIPPED, 1, 2, 3], [0, 3]))
    # the skipped lesion is below both normals, the other one above both
    assert found["slice_auroc"] == pytest.approx(1 / 2)
    assert found["pixel_auroc"] == pytest.approx(1 / 2)
    assert found["pixel_auroc_foreground"] == pytest.approx(1 / 2)


def test_lesion_study_that_was_skipped_as_a_whole_is_a_missed_study() -> None:
    found = figures(
        make_item([SKIPPED, SKIPPED], [1], case="missed"),
        make_item([5, 1], [0], case="found"),
        make_item([2, 3], [], case="normal"),
        make_item([SKIPPED, SKIPPED], [], case="normal, and left out"),
    )
    assert found["volume_auroc"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(("scores", "expected"), [([3.0], [True]), ([3.0, 1.0], [False, False])])
def test_folder_decides_for_a_picture_and_never_for_slices_of_a_volume(
    scores: list[float], expected: list[bool]
) -> None:
    item = make_item(scores, [], anomalous=True)
    assert counted_slices(item, 2).labels.tolist() == expected


def test_slice_is_anomalous_by_a_single_voxel() -> None:
    item = make_item([1, 2, 3, 4, 5], [], axis=1)
    item["label"][0, 1, 3, 1] = 1
    assert counted_slices(item, 1).labels.tolist() == [False, False, False, True, False]


def test_dice_by_hand_and_undefined_for_a_healthy_study() -> None:
    truth, empty = torch.tensor([1, 1, 1, 0, 0, 0]) > 0, torch.zeros(6) > 0
    assert dice(torch.tensor([1, 1, 0, 1, 0, 0]) > 0, truth) == pytest.approx(4 / 6)
    assert [dice(truth, truth), dice(~truth, truth), dice(empty, truth)] == [1, 0, 0]
    assert dice(empty, empty) is dice(~empty, empty) is None


def test_report_files_hold_figures_and_studies(tmp_path: Path) -> None:
    lesion = make_item([0.5, 3, 2, SKIPPED], [1], case="b.1")
    healthy = make_item([0.5, 1.5], [], case="healthy, 2")
    content, (first, second) = reported(tmp_path, lesion, healthy, provenance={"seed": 3})
    assert content["metrics"]["slice_auroc"] == 1
    assert content["metrics"]["volume_auroc"] == 1
    assert content["metrics"]["pixel_dice_at_threshold"] == pytest.approx(2 * 12 / (36 + 12))
    assert content["metrics"]["sensitivity_at_0.125fp"] == 1
    interval = content["intervals"]["slice_auroc"]
    assert interval["value"] == 1
    assert interval["patients"] == 2
    assert 0 < interval["undefined"] < interval["draws"]
    assert (content["studies"], content["slices"], content["anomalous_slices"]) == (2, 5, 1)
    assert content["slice_range"] == [0, 1]
    assert content["provenance"] == {"seed": 3}
    assert content["failed"] == {}
    assert first["case"] == "b.1"
    assert (first["slices"], first["anomalous_slices"], first["lesion_voxels"]) == ("3", "1", "12")
    assert float(first["volume_score"]) == 3
    # two slices of heat above 1, one of them the lesion
    assert float(first["dice_at_threshold"]) == pytest.approx(2 / 3)
    assert second["case"] == "healthy, 2"
    assert second["dice_at_threshold"] == ""


def test_figures_of_one_class_alone_are_null_in_the_file(tmp_path: Path) -> None:
    content, _ = reported(tmp_path, make_item([1, 2], []))
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert set(content["metrics"].values()) == {None}


def test_row_of_a_study_counts_slices_in_the_range_alone(tmp_path: Path) -> None:
    item = make_item([9, 0.5, 2, SKIPPED], [0, 2, 3])
    _, (row,) = reported(tmp_path, item, slice_range=(0.25, 0.75))
    assert (row["slices"], row["anomalous_slices"], row["lesion_voxels"]) == ("2", "1", "12")
    assert float(row["volume_score"]) == 2
    assert float(row["dice_at_threshold"]) == 1


def test_lesions_and_regions_are_those_of_whole_volumes() -> None:
    # a lesion over slices 1 and 2 is one lesion, though it is warmer in one of them
    found = figures(make_item([0.2, 3, 2, 0.4], [1, 2]), make_item([0.2, 2.5], []))
    assert found["sensitivity_at_0.125fp"] == 1  # at 3, before the false one at 2.5
    assert found["froc"] == 1
    one, two = (
        figures(make_item([0, 3, 0], [1])),
        figures(make_item([0, 3, 0], [1], axis=1), axis=1),
    )
    assert one["aupro"] == two["aupro"] == 1


def test_intervals_keep_the_studies_of_a_patient_together(tmp_path: Path) -> None:
    items = [make_item([0.5, k], [1], case=f"c{k}") for k in range(1, 7)]
    for k, item in enumerate(items):
        item["pred"].meta["patient"] = f"p{k % 2}"
    content, _ = reported(tmp_path, *items)
    assert content["intervals"]["slice_auroc"]["patients"] == 2


def test_lesion_outside_the_field_of_view_counts_as_missed(tmp_path: Path) -> None:
    values = np.zeros((40, 40, 4), np.float32)
    values[10:26, 12:30] = 100 + 10 * np.random.default_rng(0).random((16, 18, 4))
    mask = np.zeros(values.shape, np.uint8)
    mask[15:18, 20:22, 1] = 1
    mask[0:2, 38:40, 1:3] = 1  # in a corner, and in slice 2 there alone
    for name, array in (("image", values), ("label", mask)):
        nib.save(nib.Nifti1Image(array, np.diag([-1, -1, 4, 1])), tmp_path / f"{name}.nii.gz")
    case = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}
    model = make_model(tmp_path / "model.pt", slice_range=(0, 1), method=CROPPED)
    predictor = load(model, device="cpu", engine="torch")
    sample = predictor.prepare({"case": "a", **case}, label=True)
    assert int((sample["label"] > 0).sum()) == 6
    found = counted_slices({**sample, "pred": predictor.heat(sample["image"])}, 2)
    assert found.labels.tolist() == [False, True, True, False]
    assert found.heat.shape == found.lesion.shape == found.image.shape == (1, 40, 40, 4)
    np.testing.assert_array_equal(found.lesion[0] > 0, mask > 0)
    missed = found.heat[(found.lesion > 0) & (found.image == 0)]
    assert (missed.numel(), float(missed.max())) == (8, 0)
    # on the same places as in the file
    np.testing.assert_array_equal(found.heat[0] > 0, values > 0)
    report = evaluate(predictor, [{"case": "a", **case}], tmp_path, progress=False)
    assert report.rows[0]["lesion_voxels"] == 14
    assert report.rows[0]["anomalous_slices"] == 2


@pytest.mark.parametrize("method", [{}, CROPPED], ids=["whole", "cropped"])
def test_evaluation_in_python_writes_the_files_of_the_bundles_evaluation(
    cohort: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    """One study of the cohort cannot be read, and fails in both."""
    listed = json.loads((cohort / "datalist.json").read_text())
    for study in listed["test"]:
        study |= {key: str(cohort / study[key]) for key in ("image", "label") if study.get(key)}
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    listed["test"].append({"image": str(tmp_path / "bad.nii.gz")})
    source = tmp_path / "datalist.json"
    source.write_text(json.dumps({"test": listed["test"]}))
    root = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    make_model(root / "models" / "model.pt", method=method)
    given = {"dataset_dir": str(source), "output_dir": str(tmp_path / "a"), "device": "cpu"}
    with pytest.raises(CohortIncomplete, match="4 studies evaluated, 1 failed:\n  bad: "):
        open_workflow(root, ("train", "evaluate"), {**given, "progress": False}).run()
    predictor = load(root, device="cpu")
    report = evaluate(predictor, find_cases(source, "test"), tmp_path / "b", progress=False)
    with pytest.raises(CohortIncomplete, match="1 failed"):
        report.finish()
    assert list(report.report["failed"]) == ["bad"]
    for name in ("metrics.json", "studies.csv"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
