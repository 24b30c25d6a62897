"""A bundle trained by the preset of the paper, and what opens it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mcmiad_monai import load
from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.inference.cohort import infer_cohort
from mcmiad_monai.inference.evaluation import evaluate
from mcmiad_monai.training.method import preset
from mcmiad_monai.training.schedule_choice import better


@pytest.fixture(scope="module")
def paper(train: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = copy_bundle("brain_mri_anomaly", tmp_path_factory.mktemp("paper") / "bundle")
    made = replace(train("brain_mri_anomaly"), root=root)
    small = made.small(preset="paper", stage_weights=[1.0, 0.0, 0.0, 0.0])
    open_workflow(root, "train", small).run()
    return made


def test_schedule_was_chosen_on_validation(paper: Any) -> None:
    training = load(paper.root, device="cpu").detector.trained_with
    figures = training["schedule"]["validation"]
    assert set(figures) == {"cosine", "step"}
    assert training["schedule"]["schedule"] == better(figures)
    kept = paper.root / "models"
    best = kept / "best.pt" if better(figures) == "cosine" else kept / "step" / "best.pt"
    packaged = load(paper.root, device="cpu").detector.head.state_dict()
    weights = torch.load(best, weights_only=True)["network"]
    assert all(torch.equal(packaged[name], weights[name]) for name in weights)
    assert training["method"]["schedule"] == "auto"


def test_bundle_changes_no_option_of_the_paper(paper: Any) -> None:
    detector = load(paper.root, device="cpu").detector
    assert (detector.image_options["field_of_view"], detector.context) == ("whole", 1)
    given = detector.trained_with["method"]
    small = {"encoder_name", "weights", "text_prior", "max_epochs", "batch_size", "learning_rate"}
    expected = {k: v for k, v in preset("paper").to_dict().items() if k not in small}
    changed = {name for name, value in expected.items() if given[name] != value}
    assert changed == {"head", "stage_weights"}  # of the small model of these tests


@pytest.mark.parametrize(("name", "own"), [("default", ("foreground", 3)), ("paper", ("whole", 1))])
def test_lines_of_the_bundle_change_options_of_the_default_preset_alone(
    name: str, own: tuple[str, int], tmp_path: Path
) -> None:
    root = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")

    def method(**options: Any) -> tuple[str, int]:
        workflow = open_workflow(root, "train", {"preset": name, **options})
        found = workflow.parser.get_parsed_content("method")
        return found.field_of_view, found.context

    assert method() == own
    assert method(field_of_view="whole", context=1) == ("whole", 1)
    assert method(field_of_view="foreground")[0] == "foreground"


def test_all_pixels_have_heat_by_both_roads(paper: Any, tmp_path: Path) -> None:
    options = paper.options(output_dir=str(tmp_path / "monai"))
    open_workflow(paper.root, "inference", options).run()
    cases = find_studies(paper.source, "test", modality="brain_mri")[:1]
    predictor = load(paper.root, device="cpu")
    infer_cohort(predictor, cases, tmp_path / "python", progress=False)
    name = cases[0]["case"]
    found, expected = (
        (tmp_path / road / name / f"{name}_heatmap.nii.gz").read_bytes()
        for road in ("python", "monai")
    )
    assert found == expected
    heat = predictor.heat(predictor.prepare(cases[0])["image"])[0]
    low, high = (int(share * heat.shape[2]) for share in predictor.slice_range)
    assert (heat[..., low:high] > 0).all()


def test_evaluation_prepares_images_as_the_training_did(paper: Any, tmp_path: Path) -> None:
    # train.yaml beside it names the default preset; the model knows better
    options: dict[str, Any] = paper.options(output_dir=str(tmp_path / "monai"))
    open_workflow(paper.root, ("train", "evaluate"), options).run()
    cases = find_studies(paper.source, "test", modality="brain_mri")
    evaluate(load(paper.root, device="cpu"), cases, tmp_path / "python", progress=False)
    metrics = [
        json.loads((tmp_path / road / "metrics.json").read_text())["metrics"]
        for road in ("monai", "python")
    ]
    assert metrics[0] == metrics[1]
