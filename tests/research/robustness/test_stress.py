"""A stress test on phantoms: equal to an evaluation where clean, resumable, never stopped."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose
from PIL import Image
from stressed import FEW, RANGE, make_model, require_figures_of_an_evaluation, rows_of

from mcmiad_monai.calibration import Calibration, UnifiedCalibration
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.data.studies import StudyDataset
from mcmiad_monai.inference.cohort import CohortIncomplete
from mcmiad_monai.inference.evaluation import EvaluationReport
from mcmiad_monai.inference.evaluator import StudyEvaluator
from mcmiad_monai.inference.inferer import SliceHeatmapInferer
from mcmiad_monai.modality import get_modality
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.networks.weights import WeightsError
from mcmiad_monai.predictor import load
from mcmiad_monai.research.robustness.corruptions import CORRUPTIONS, StudyCorruptor
from mcmiad_monai.research.robustness.stress import require_complete, run_stress, split_steps
from mcmiad_monai.runtime.export import export_model

Straight = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="module")
def cases(cohort: Path) -> list[dict[str, Any]]:
    return find_cases(cohort / "datalist.json", "test")


@pytest.fixture(scope="module")
def straight(
    model: Path, cases: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Straight:
    """Folder and report of a test in one go."""
    out = tmp_path_factory.mktemp("stress")
    return out, run_stress(model, cases, out=out, **FEW)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Studies inferred, by number of slices."""
    calls: list[int] = []
    call = SliceHeatmapInferer.__call__

    def counted(self: Any, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(inputs.shape[-1])
        return call(self, inputs, network, *args, **kwargs)

    monkeypatch.setattr(SliceHeatmapInferer, "__call__", counted)
    return calls


def test_clean_figures_are_those_of_an_evaluation_of_the_bundle(
    model: Path, cohort: Path, straight: Straight, tmp_path: Path
) -> None:
    require_figures_of_an_evaluation(straight, model, cohort, tmp_path)


def test_corrupted_figures_are_those_of_an_evaluation_of_corrupted_studies(
    model: Path, cases: list[dict[str, Any]], straight: Straight, tmp_path: Path
) -> None:
    network = load_package(model)
    read, normalise = split_steps(load(model, device="cpu"))

    def turn(sample: dict[str, Any]) -> dict[str, Any]:
        image, label, place = sample["image"], sample["label"], (CORRUPTIONS["rotation"], 5)
        corrupt = StudyCorruptor(image, modality=get_modality("brain_mri"), case=sample["case"])
        return {**sample, "image": corrupt(*place), "label": corrupt.moved(label, *place)}

    dataset = StudyDataset(cases, Compose([read, turn, normalise]))
    evaluator = StudyEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1),
        network=network,
        inferer=SliceHeatmapInferer(axis=2, slice_range=RANGE, score=network.score.slice_score),
        val_handlers=[EvaluationReport(tmp_path, axis=2, slice_range=RANGE)],
    )
    evaluator.run()
    row = rows_of(straight[1])["rotation", 5]
    for name, within in (("volume_auroc", 0), ("slice_auroc", 0), ("pixel_auroc", 1e-3)):
        assert row[name] == pytest.approx(evaluator.state.metrics[name], abs=within), name
    assert row["pixel_auroc"] != rows_of(straight[1])["clean", 0]["pixel_auroc"]


def test_rates_count_what_exceeds_the_thresholds(straight: Straight) -> None:
    out, report = straight
    studies = list(csv.DictReader((out / "studies.csv").open()))
    clean = report["rows"][0]
    for anomalous, count, whole, rate in (
        (False, "volume_false_positives", "normal_volumes", "volume_false_positive_rate"),
        (True, "volume_detections", "anomalous_volumes", "volume_sensitivity"),
    ):
        scores = [
            float(s["volume_score"])
            for s in studies
            if (int(s["anomalous_slices"]) > 0) == anomalous
        ]
        above = sum(score > 1.0343 for score in scores)
        assert (clean[count], clean[whole]) == (above, len(scores))
        assert clean[rate] == pytest.approx(above / len(scores))
    assert clean["studies"] == 4
    assert clean["normal_slices"] + clean["anomalous_slices"] == 4 * 5
    assert 0 < clean["slice_false_positives"] < clean["normal_slices"]
    assert 0 < clean["pixel_false_positives"] < clean["normal_pixels"]


def test_pixel_rate_is_of_the_foreground_of_slices_without_lesion(
    model: Path, cases: list[dict[str, Any]], straight: Straight
) -> None:
    network = load_package(model)
    read, normalise = split_steps(load(model, device="cpu"))
    dataset = StudyDataset(cases, Compose([read, normalise]))
    hot = whole = 0
    for k in range(len(dataset)):
        sample = dataset[k]
        heat = SliceHeatmapInferer(slice_range=RANGE)(sample["image"][None], network)
        image, label, heatmap = (
            np.asarray(v)[0] for v in (sample["image"], sample["label"], heat[0])
        )
        for z in range(3, 8):
            if not label[..., z].any():
                hot += int((heatmap[..., z][image[..., z] > 0] > 1).sum())
                whole += int((image[..., z] > 0).sum())
    clean = straight[1]["rows"][0]
    assert (clean["pixel_false_positives"], clean["normal_pixels"]) == (hot, whole)


def test_everything_is_written_and_json_has_no_nan(
    straight: Straight,
) -> None:
    out, report = straight

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    stored = json.loads((out / "stress.json").read_text(), parse_constant=refuse)
    assert stored["rows"] == report["rows"]
    assert stored["provenance"]["training"]["modality"] == "brain_mri"
    assert stored["measured_with"]["software"]["monai"]
    table = list(csv.DictReader((out / "stress.csv").open()))
    names = ["clean", "rotation", "rotation", "rician_noise", "rician_noise"]
    assert [row["corruption"] for row in table] == names
    assert float(table[1]["pixel_auroc"]) == report["rows"][1]["pixel_auroc"]
    text = (out / "stress.md").read_text()
    assert f"| rotation | 5 | 20 | 4 | {report['rows'][2]['volume_auroc']:.3f} |" in text
    pixels = np.asarray(Image.open(out / "stress.png").convert("RGB")).astype(int)
    assert (pixels.max(axis=2) - pixels.min(axis=2) > 60).sum() > 1000  # coloured lines
    assert not list(out.glob(".*"))


def test_finished_conditions_are_not_repeated_and_new_ones_are_added(
    model: Path,
    cases: list[dict[str, Any]],
    straight: Straight,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(straight[0], tmp_path / "out")
    calls = count_calls(monkeypatch)
    again = run_stress(model, cases, out=tmp_path / "out", **FEW)
    assert calls == []
    assert again["rows"] == straight[1]["rows"]
    more = run_stress(model, cases, out=tmp_path / "out", **{**FEW, "severities": [1, 2, 5]})
    assert len(calls) == 2 * len(cases)
    assert [row for row in more["rows"] if row["severity"] != 1] == again["rows"]
    fewer = run_stress(model, cases[1:], out=tmp_path / "out", **FEW)
    assert fewer["rows"][0]["studies"] == len(cases) - 1
    assert len(calls) == 2 * len(cases)
    run_stress(model, cases, out=tmp_path / "out", **{**FEW, "seed": 1})
    assert len(calls) == 2 * len(cases) + 5 * len(cases)


def test_killed_run_goes_on_after_the_studies_that_are_counted(
    model: Path,
    cases: list[dict[str, Any]],
    straight: Straight,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = count_calls(monkeypatch)
    add = SliceHeatmapInferer.__call__

    def stopped(self: Any, *args: Any) -> Any:
        if len(calls) == 8:  # in the second study of four
            raise KeyboardInterrupt
        return add(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(SliceHeatmapInferer, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_stress(model, cases, out=tmp_path, **FEW)
    assert not (tmp_path / "stress.json").exists()
    report = run_stress(model, cases, out=tmp_path, **FEW)
    assert len(calls) == 5 * len(cases)
    assert report["rows"] == straight[1]["rows"]


def test_counts_of_another_model_or_a_damaged_file_are_not_used(
    model: Path,
    cases: list[dict[str, Any]],
    straight: Straight,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(straight[0] / "partial", tmp_path / "partial")
    damaged = tmp_path / "partial" / f"{cases[1]['case']}.pt"
    damaged.write_bytes(b"half a file")
    few = {**FEW, "corruptions": ["rotation"], "severities": [5]}
    expected = rows_of(straight[1])
    report = rows_of(run_stress(model, cases, out=tmp_path, **few))
    assert report["clean", 0] == expected["clean", 0]
    assert f"{damaged.name} cannot be read" in caplog.text
    other = rows_of(run_stress(make_model(tmp_path / "b.pt", seed=5), cases, out=tmp_path, **few))
    assert other["clean", 0]["pixel_auroc"] != expected["clean", 0]["pixel_auroc"]
    assert "was made with another model" in caplog.text


def test_bad_study_is_reported_and_stops_nothing(
    model: Path, cases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    bad = {"case": "broken", "image": str(broken), "label": None, "anomalous": None}
    noise = CORRUPTIONS["rician_noise"]

    def unlucky(planes: Any, level: float) -> torch.Tensor:
        if planes.values.max() > limit:
            raise ValueError("unlucky study")
        return noise.effect(planes, level)

    read, _ = split_steps(load(model, device="cpu"))
    limit = min(float(read(dict(case))["image"].max()) for case in cases[:2])
    monkeypatch.setitem(CORRUPTIONS, "rician_noise", replace(noise, effect=unlucky))
    few = {**FEW, "severities": [5]}
    report = run_stress(model, [bad, *cases[:2]], out=tmp_path, **few)
    assert list(report["failed"]) == ["broken"]
    rows = rows_of(report)
    assert rows["clean", 0]["studies"] == rows["rotation", 5]["studies"] == 2
    assert rows["rician_noise", 5]["studies"] == 1
    assert list(rows["rician_noise", 5]["failed"].values()) == ["ValueError: unlucky study"]
    assert "- broken: " in (tmp_path / "stress.md").read_text()
    with pytest.raises(CohortIncomplete, match=r"2 failures:\n  broken: [^\n]*\n.*unlucky study"):
        require_complete(report)


def test_undefined_figures_are_null(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    normal = [case for case in cases if "normal" in case["case"]][:1]
    few = {**FEW, "corruptions": ["blur"], "severities": [1]}
    unset = make_model(tmp_path / "unset.pt", thresholds=(float("inf"), float("inf")))
    report = run_stress(unset, normal, out=tmp_path / "unset", **few)
    for row in report["rows"]:
        for name in ("volume_auroc", "slice_auroc", "pixel_auroc", "volume_false_positive_rate"):
            assert row[name] is None
        assert row["slice_false_positives"] is None
        assert row["normal_volumes"] == 1
        assert row["pixel_false_positive_rate"] > 0
    assert "| – | – | – | – | – | " in (tmp_path / "unset" / "stress.md").read_text()
    bare = make_model(tmp_path / "bare.pt", thresholds=None)
    report = run_stress(bare, normal, out=tmp_path / "bare", **few)
    assert report["rows"][0]["pixel_false_positive_rate"] is None


def test_pictures_pass_over_what_they_cannot_show(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :60]
    head = ((y - 32) / 26) ** 2 + ((x - 30) / 22) ** 2 < 1
    grey = np.where(head, 120 + 20 * np.sin(x / 3), 0).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    case = {"case": "a", "image": str(tmp_path / "a.png"), "label": None, "anomalous": True}
    few = {**FEW, "corruptions": ["thick_slices", "motion"], "severities": [3]}
    model = make_model(tmp_path / "model.pt", slice_range=(0.0, 1.0))
    rows = rows_of(run_stress(model, [case], out=tmp_path / "out", **few))
    assert (rows["thick_slices", 3]["studies"], rows["thick_slices", 3]["not_applicable"]) == (0, 1)
    assert rows["thick_slices", 3]["volume_auroc"] is None
    assert (rows["motion", 3]["studies"], rows["motion", 3]["anomalous_volumes"]) == (1, 1)


def test_wrong_requests_are_refused_before_anything_runs(
    model: Path, cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    for wrong, told in (
        ({"corruptions": ["hu_shift"]}, "'hu_shift' is not one of brain_mri"),
        ({"severities": [1, 6]}, "severity 6"),
        ({"severities": []}, "at least one of each"),
    ):
        with pytest.raises(ValueError, match=told):
            run_stress(model, cases, out=tmp_path, **{**FEW, **wrong})
    for few_cases, told in (([], "got 0 cases"), ([cases[0], cases[0]], "more than once")):
        with pytest.raises(ValueError, match=told):
            run_stress(model, few_cases, out=tmp_path, **FEW)
    assert list(tmp_path.iterdir()) == []
    unknown = make_model(tmp_path / "unknown.pt", modality=None)
    with pytest.raises(WeightsError, match="for which modality"):
        run_stress(unknown, cases, out=tmp_path, **FEW)
    with pytest.raises(ValueError, match="trained for brain_mri, and the studies are said to be l"):
        run_stress(model, cases, out=tmp_path, modality="liver_ct", **FEW)


@pytest.fixture(scope="module")
def unified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `model`, unified, with twice its pixel threshold for brain MRI's neighbour."""
    path = make_model(tmp_path_factory.mktemp("unified") / "model.pt", modality="unified")
    detector = load_package(path)
    mri = Calibration.from_dict(detector.calibration)
    other = replace(mri, pixel_threshold=2 * mri.pixel_threshold)
    both = UnifiedCalibration({"brain_mri": mri, "retina_oct": other})
    # the network's own unit is the larger of the two thresholds
    detector.heat_scale.mul_(2)
    save_package(path, detector, calibration=both.to_dict(), provenance={**detector.provenance})
    return path


def test_unified_model_is_measured_as_a_model_of_the_modality(
    unified: Path,
    cases: list[dict[str, Any]],
    straight: Straight,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stranger = {**cases[0], "case": "stranger", "modality": "liver_ct"}
    caplog.set_level("INFO", logger="mcmiad_monai")
    report = run_stress(unified, [stranger, *cases], out=tmp_path, modality="brain_mri", **FEW)
    assert "1 cases of other modalities are left out" in caplog.text
    assert report["modality"] == "brain_mri"
    assert report["calibration"] == straight[1]["calibration"]
    few = {name: pytest.approx(value) for name, value in rows_of(straight[1])["clean", 0].items()}
    assert rows_of(report)["clean", 0] == few
    assert report["rows"][0]["pixel_false_positive_rate"] > 0


def test_unified_model_takes_the_modality_that_cases_name(
    unified: Path, cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    few = {**FEW, "corruptions": ["blur"], "severities": [1]}
    untold = [{**case, "modality": None} for case in cases]
    told = [{**untold[0], "modality": "brain_mri"}]
    assert run_stress(unified, told, out=tmp_path, **few)["modality"] == "brain_mri"
    mixed = [*told, {**untold[1], "modality": "liver_ct"}]
    for which, says in ((untold, "none"), (mixed, "'brain_mri', 'liver_ct'")):
        with pytest.raises(ValueError, match=f"one modality at a time.*{says}.*--modality"):
            run_stress(unified, which, out=tmp_path, **few)
    with pytest.raises(ValueError, match="no thresholds for 'liver_ct'"):
        run_stress(unified, mixed, out=tmp_path, modality="liver_ct", **few)


def test_export_beside_the_model_computes_and_is_told(
    model: Path, cases: list[dict[str, Any]], tmp_path: Path, straight: Straight
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    copied = shutil.copy(model, tmp_path / "model.pt")
    export_model(load_package(copied), tmp_path / "model.onnx")
    few = {**FEW, "corruptions": ["rotation"]}
    report = run_stress(copied, cases, out=tmp_path / "out", **few)
    assert straight[1]["engine"].startswith("PyTorch")
    assert report["engine"].startswith("onnxruntime")
    exact = rows_of(straight[1])
    for place, row in rows_of(report).items():
        figures = {n: v for n, v in exact[place].items() if "auroc" in n}
        assert {n: row[n] for n in figures} == pytest.approx(figures, abs=1e-3)
