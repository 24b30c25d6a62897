"""Experiments with a memory of normal tokens, beside the head or without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_experiments import SIZE, TINY, make_lab, read_table, run

from mcmiad_monai.networks.package import load_package
from mcmiad_monai.research.bmad.phantom import write_bmad_phantom
from mcmiad_monai.research.protocols import experiment as experiments_room
from mcmiad_monai.research.protocols.experiment import run_experiment
from mcmiad_monai.research.protocols.laboratory import Experiment
from mcmiad_monai.research.protocols.scores import SCORES

pytestmark = pytest.mark.filterwarnings("ignore:the encoder .* has RANDOM weights")

MEMORY = TINY.with_options(parts="memory", score="auto", smooth_sigma=None, image_score=None)


@pytest.mark.parametrize("parts", ["memory", "both"])
def test_memory_is_built_chosen_calibrated_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: str
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a head was trained")

    if parts == "memory":
        monkeypatch.setattr(experiments_room, "fit_head", never)
    lab = make_lab(tmp_path, "brain")
    method = MEMORY.with_options(parts=parts)
    plan = Experiment(name="x", sets=("brain",), method=method)
    report = run_experiment(plan, lab, tmp_path / "runs")
    rows = ["memory-cosine", "memory-l2", "score of the method"]
    rows = rows if parts == "memory" else [*SCORES, *rows]
    assert list(report["results"]["brain"]["scores"]) == rows
    assert "pixel_dice_at_threshold" in report["results"]["brain"]["scores"][rows[-1]]
    assert report["memory"]["studies"] == report["trained_on"]["brain"]
    chosen = report["score"]["options"]["sources"]
    assert set(chosen) <= {"head", "memory-cosine", "memory-l2", "intensity"}
    assert (report["parameters"] == 0) == (parts == "memory")
    detector = load_package(tmp_path / "runs" / plan.folder / "model.pt")
    assert (detector.head is None) == (parts == "memory")
    assert detector.score.sources == chosen
    assert detector.calibration == report["calibration"]
    assert detector.trained_with["score"]["summary"] == report["score"]["summary"]
    json.dumps(report, allow_nan=False)


def test_a_memory_of_shots_and_one_of_all_sets(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, "brain", "liver")
    one = Experiment(name="1-shot", sets=("brain",), method=MEMORY, shots=1)
    report = run_experiment(one, lab, tmp_path / "runs")
    assert report["memory"]["studies"] == 1
    cells = lab.encoder(MEMORY).grid ** 2
    assert report["memory"]["tokens"] == cells
    both = Experiment(name="unified", sets=("liver", "brain"), method=MEMORY)
    report = run_experiment(both, lab, tmp_path / "runs")
    assert report["memory"]["studies"] == sum(report["trained_on"].values())
    assert list(report["results"]) == ["liver", "brain"]


def test_without_validation_images_the_simplest_score_is_taken_and_said(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, "brain", layout="ader")
    assert not lab.sets["brain"].cases("val")
    plan = Experiment(name="x", sets=("brain",), method=MEMORY)
    report = run_experiment(plan, lab, tmp_path / "runs")
    assert report["calibration"] == {}
    assert (
        "memory-cosine, image score hottest, not chosen: not every set"
        in report["score"]["summary"]
    )
    scores = report["results"]["brain"]["scores"]
    assert scores["score of the method"]["pixel_ap"] == scores["memory-cosine"]["pixel_ap"]
    total = plan.method.with_options(parts="both", score="head+memory-l2")
    plan = Experiment(name="x", sets=("brain",), method=total)
    with pytest.raises(ValueError, match=r"head\+memory-l2 is a sum.*--set score=memory-cosine"):
        run_experiment(plan, lab, tmp_path / "runs")


def test_tables_figure_and_report_of_a_memory(tmp_path: Path) -> None:
    write_bmad_phantom(tmp_path / "data", sets=["brain"], size=SIZE)
    method = MEMORY.with_options(text_prior="open_clip")  # which nothing reads
    out = run(tmp_path, method=method, tables=[4], seeds=[0])
    report = (out / "report.md").read_text()
    assert "no head was trained" in report
    assert "- w/ CLIP fusion, brain, seed 0: memory-" in report
    assert "text prior not adapted: no head is trained that reads it" in report
    variants = [row[0] for row in read_table(out / "table4.csv")]
    assert variants[-2:] == ["score memory-cosine", "score memory-l2"]
    assert not [name for name in variants if "S_cos" in name]
    with Image.open(out / "figure3.png") as picture:
        assert picture.size[0] > 500
