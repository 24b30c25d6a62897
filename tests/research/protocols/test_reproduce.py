"""The whole road on small generated trees: tables, resume, figures."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from small_experiments import SIZE, TINY, make_lab, read_table, run

from mcmiad_monai.inference.cohort import CohortIncomplete
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.weights import WeightsError
from mcmiad_monai.research.bmad.phantom import LAYOUTS, Layout, write_bmad_phantom
from mcmiad_monai.research.bmad.sets import Masks, find_bmad, own_set
from mcmiad_monai.research.protocols import experiment as experiments_room
from mcmiad_monai.research.protocols import reproduce as reproduce_room
from mcmiad_monai.research.protocols.experiment import run_experiment
from mcmiad_monai.research.protocols.laboratory import Experiment, Laboratory
from mcmiad_monai.research.protocols.scores import SCORES, score_name, scores_of
from mcmiad_monai.training import fit as fit_room
from mcmiad_monai.training.identity import CheckpointError
from mcmiad_monai.training.schedule_choice import better

pytestmark = pytest.mark.filterwarnings("ignore:the encoder .* has RANDOM weights")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_table_1(tmp_path: Path, layout: Layout) -> None:
    write_bmad_phantom(tmp_path / "data", layout=layout, size=SIZE)
    out = run(tmp_path, tables=[1], seeds=[0])
    header, *rows = read_table(out / "table1.csv")
    figures = {(k > len(rows) // 2, row[0]): row for k, row in enumerate(rows)}
    ours, unified = header.index("ours (per set)"), header.index("ours, unified")
    for name in ("Liver Tumor", "Brain Tumor", "Retina (RESC)", "Average"):
        for pixel in (False, True):
            assert 0 <= float(figures[pixel, name][ours]) <= 100
            assert 0 <= float(figures[pixel, name][unified]) <= 100
    if layout != "ader":
        assert figures[True, "Retina (OCT2017)"][ours] == "–"  # it has no masks
        assert figures[False, "Retina (OCT2017)"][ours] != "–"
    assert "these figures mean nothing" in (out / "report.md").read_text()
    with Image.open(out / "figure3.png") as picture:
        assert picture.size[0] > 500


def test_all_tables_over_two_seeds_and_a_second_call_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bmad_phantom(tmp_path / "data", sets=["brain"], size=SIZE)
    out = run(tmp_path, seeds=[0, 1], shots=[1, 2])
    results = [json.loads(path.read_text()) for path in sorted(out.rglob("result.json"))]
    base = [
        r["results"]["brain"]["scores"][score_name(TINY)]["image_auroc"]
        for r in results
        if r["experiment"]["name"] == "w/ CLIP fusion" and "brain" in r["results"]
    ]
    assert len(base) == 2
    expected = f"{100 * statistics.fmean(base):.1f} ± {100 * statistics.stdev(base):.1f}"
    table = {row[0]: row for row in read_table(out / "table1.csv")[:5]}
    assert table["Brain Tumor"][-1] == expected
    header = read_table(out / "table3.csv")[0]
    assert "ours, 1" in header
    assert "ours, 2" in header
    variants = [row[0] for row in read_table(out / "table4.csv")]
    assert "w/o CLIP fusion" in variants
    assert [f"score {name}" in variants for name in SCORES] == [True] * len(SCORES)
    report = (out / "report.md").read_text()
    assert "images: colours kept, not normalised; pixels that count: all" in report
    assert "masks: all above 0 is lesion" in report
    (choice,) = (json.loads(path.read_text()) for path in out.glob("schedules/*/choice.json"))
    assert choice["schedule"] == better(choice["validation"])
    assert {r["experiment"]["method"]["schedule"] for r in results} >= {choice["schedule"]}

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished experiment was repeated")

    before = (out / "details.csv").read_text()
    monkeypatch.setattr(experiments_room, "train", never)
    assert run(tmp_path, seeds=[0, 1], shots=[1, 2]) == out
    assert (out / "details.csv").read_text() == before


def test_result_carries_what_produced_it(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, "brain")
    plan = Experiment(name="x", sets=("brain",), method=TINY, seed=3, shots=2)
    report = run_experiment(plan, lab, tmp_path / "runs")
    assert report["experiment"]["seed"] == 3
    assert len(report["supports"]["brain"]) == report["trained_on"]["brain"] == 2
    assert report["data"]["brain"]["test"] == [6, 8]
    assert report["results"]["brain"]["images"] == {"good": 6, "anomalous": 8}
    assert report["results"]["brain"]["empty_masks"] == 1
    provenance = report["provenance"]
    assert len(provenance["encoder"]["tensors_sha256"]) == 64
    assert provenance["software"]["torch"] == torch.__version__.split("+")[0]
    assert "git_revision" in provenance
    assert report["parameters"] > 0


def test_labels_by_folder_and_by_mask_are_both_reported(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, "brain", "oct2017")
    plan = Experiment(name="x", sets=("brain", "oct2017"), method=TINY)
    results = run_experiment(plan, lab, tmp_path / "runs")["results"]
    brain = results["brain"]["scores"][score_name(TINY)]
    assert brain["image_auroc"] != brain["image_by_mask_auroc"]  # one Ungood mask is empty
    assert "image_by_mask_auroc" not in results["oct2017"]["scores"][score_name(TINY)]
    low, high = brain["image_auroc_interval"]
    assert low <= brain["image_auroc"] <= high


def test_white_masks_are_measured_with_the_model_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bmad_phantom(tmp_path / "data", sets=["brain"], size=SIZE)

    def measured(masks: Masks) -> dict[str, Any]:
        found = find_bmad(tmp_path / "data", masks=masks)
        lab = Laboratory(sets=found, cache_dir=tmp_path / "f", size=SIZE, progress=False)
        return run_experiment(plan, lab, tmp_path / "runs")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was trained again")

    plan = Experiment(name="x", sets=("brain",), method=TINY)
    all_greys = measured("any")
    monkeypatch.setattr(experiments_room, "train", never)
    white = measured("white")
    assert (all_greys["masks"], white["masks"]) == ("any", "white")
    assert white["calibration"] == all_greys["calibration"]
    figures = [r["results"]["brain"]["scores"][score_name(TINY)] for r in (all_greys, white)]
    assert figures[0]["image_auroc"] == pytest.approx(figures[1]["image_auroc"])
    assert figures[0]["pixel_auroc"] != figures[1]["pixel_auroc"]
    assert measured("any") == all_greys
    assert measured("white") == white


def test_own_volumes_are_trained_on_and_judged_slice_by_slice(tmp_path: Path, cohort: Path) -> None:
    found = own_set(cohort / "datalist.json", "brain_mri")
    lab = Laboratory(
        sets={"mine": found}, cache_dir=tmp_path / "features", size=SIZE, progress=False
    )
    plan = Experiment(name="x", sets=("mine",), method=TINY)
    results = run_experiment(plan, lab, tmp_path / "runs")["results"]["mine"]
    assert results["images"]["good"] > 0
    assert results["images"]["anomalous"] > 0
    assert sum(results["images"].values()) == 4 * 10  # slices of four test studies
    figures = results["scores"][score_name(TINY)]
    assert 0 <= figures["image_auroc"] <= 1
    assert figures["image_auroc"] == figures["image_by_mask_auroc"]


def test_packaged_model_gives_the_figures_heatmaps(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, "liver")
    plan = Experiment(name="x", sets=("liver",), method=TINY)
    report = run_experiment(plan, lab, tmp_path / "runs")
    detector = load_package(tmp_path / "runs" / plan.folder / "model.pt", modality="liver_ct")
    assert detector.calibration == report["calibration"]
    assert detector.calibration["normal_patients"] == 2
    data = lab.features("liver", "test", TINY)
    with torch.inference_mode():
        heat = detector.heatmap_from_features(data.batch([0, 9]), data.foreground([0, 9]))
    assert heat.shape == (2, 1, SIZE, SIZE)
    assert detector.heat_scale > 0


def test_head_is_measured_as_its_score_alone_defines(tmp_path: Path) -> None:
    """Figures of the paper's method against heatmaps that the score itself makes."""
    lab = make_lab(tmp_path, "brain")
    plan = Experiment(name="x", sets=("brain",), method=TINY)
    report = run_experiment(plan, lab, tmp_path / "runs")
    assert "memory" not in report
    assert "score" not in report
    detector = load_package(tmp_path / "runs" / plan.folder / "model.pt")
    data = lab.features("brain", "test", TINY)
    rows = list(range(len(data)))
    with torch.inference_mode():
        output = detector.head(data.batch(rows))
        inside = data.foreground(rows)
        for name, options in scores_of(TINY).items():
            score = TINY.build_score(lab.encoder(TINY), **options)
            heat = score(output.target, output.reconstruction, inside.shape[-2:]) * inside
            images = score.slice_score(heat, inside).tolist()
            labels = [case["anomalous"] for case in lab.sets["brain"].cases("test")]
            found = report["results"]["brain"]["scores"][name]["image_auroc"]
            assert found == pytest.approx(roc_auc_score(labels, images), abs=1e-9)


def test_stopped_experiment_goes_on_and_equals_a_straight_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path, "liver")
    plan = Experiment(name="x", sets=("liver",), method=TINY)
    straight = run_experiment(plan, lab, tmp_path / "straight")

    class Stopped(KeyboardInterrupt):
        pass

    original = fit_room.TrainingBar._figures

    def stop_in_the_second(self: Any, output: Any) -> dict[str, float]:
        if (tmp_path / "stopped" / plan.folder / "last.pt").exists():
            raise Stopped
        return original(self, output)

    with monkeypatch.context() as patch:
        patch.setattr(fit_room.TrainingBar, "_figures", stop_in_the_second)
        with pytest.raises(Stopped):
            run_experiment(plan, lab, tmp_path / "stopped")
    resumed = run_experiment(plan, lab, tmp_path / "stopped")
    assert resumed["results"] == straight["results"]
    assert not list((tmp_path / "stopped").rglob("last.pt"))


def test_stop_while_measuring_does_not_train_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path, "liver")
    plan = Experiment(name="x", sets=("liver",), method=TINY)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(experiments_room, "measure", fail)
        with pytest.raises(OSError, match="disk full"):
            run_experiment(plan, lab, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(fit_room.HeadTrainer, "run", fail)
        found = run_experiment(plan, lab, tmp_path / "a")
    assert found["results"] == run_experiment(plan, lab, tmp_path / "b")["results"]


def test_stopped_experiment_goes_on_with_the_same_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path, "liver")
    plan = Experiment(name="x", sets=("liver",), method=TINY)
    with monkeypatch.context() as patch:
        patch.setattr(experiments_room, "measure", MagicMock(side_effect=OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run_experiment(plan, lab, tmp_path / "a")
    image = lab.sets["liver"].cases("train")[0]["image"]
    turned = Image.open(image).transpose(Image.Transpose.ROTATE_180)
    turned.save(image)
    with pytest.raises(CheckpointError, match=r"training studies: .*1 new or changed \(.+\)"):
        run_experiment(plan, lab, tmp_path / "a")


def test_failed_experiment_is_reported_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bmad_phantom(tmp_path / "data", sets=["brain", "liver"], size=SIZE)
    original = reproduce_room.run_experiment

    def fail_on_liver(plan: Experiment, *rest: Any) -> Any:
        if plan.sets == ("liver",):
            raise RuntimeError("no memory")
        return original(plan, *rest)

    monkeypatch.setattr(reproduce_room, "run_experiment", fail_on_liver)
    with pytest.raises(
        CohortIncomplete, match=r"2 experiments done, 1 failed:\n.*liver.*no memory"
    ):
        run(tmp_path, tables=[1], seeds=[0])
    rows = {row[0]: row for row in read_table(tmp_path / "out" / "table1.csv")}
    assert rows["Brain Tumor"][-1] != "–"
    assert rows["Average"][-1] == "–"


def test_missing_weights_and_wrong_options_show_before_anything_is_run(tmp_path: Path) -> None:
    write_bmad_phantom(tmp_path / "data", sets=["brain"], size=SIZE)
    missing = TINY.with_options(weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        run(tmp_path, method=missing)
    with pytest.raises(ValueError, match=r"'dimm' is no option of the method\. Did you mean dim"):
        TINY.with_options(dimm=3)
    assert not (tmp_path / "out" / "runs").exists()


def test_nothing_that_works_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    write_bmad_phantom(tmp_path / "data", sets=["brain"], size=SIZE)
    monkeypatch.setattr(reproduce_room, "run_experiment", fail)
    with pytest.raises(RuntimeError, match=r"none of 1 experiments(.|\n)*no memory"):
        run(tmp_path, tables=[1], seeds=[0])


def test_figures_of_other_images_are_not_taken_for_todays(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, "liver")
    plan = Experiment(name="x", sets=("liver",), method=TINY)
    run_experiment(plan, lab, tmp_path / "runs")
    for path in (tmp_path / "data").rglob("test/good/img/*_60.png"):
        path.unlink()
    fewer = Laboratory(
        sets=find_bmad(tmp_path / "data"), cache_dir=tmp_path / "f", size=SIZE, progress=False
    )
    with pytest.raises(ValueError, match=r"'test': \[6, 8\].*now hold.*'test': \[3, 8\]"):
        run_experiment(plan, fewer, tmp_path / "runs")


def test_set_without_images_to_train_on_is_refused_at_once(tmp_path: Path) -> None:
    data = write_bmad_phantom(tmp_path / "data", sets=["brain", "liver"], size=SIZE)
    shutil.rmtree(data / "Liver_AD" / "train")
    with pytest.raises(ValueError, match="liver has no train part"):
        run(tmp_path)
