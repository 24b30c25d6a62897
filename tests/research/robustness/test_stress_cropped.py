"""A model that sees a field of view and a context, under stress."""

from __future__ import annotations

from pathlib import Path

import pytest
from stressed import FEW, make_model

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.inference.evaluation import evaluate
from mcmiad_monai.predictor import load
from mcmiad_monai.research.robustness.stress import run_stress


def test_cropped_studies_have_the_figures_of_an_evaluation(cohort: Path, tmp_path: Path) -> None:
    cases = find_cases(cohort / "datalist.json", "test")
    method = {"field_of_view": "foreground", "context": 3}
    model = make_model(tmp_path / "model.pt", method=method)
    few = {**FEW, "corruptions": ["rotation"], "severities": [5]}
    clean, turned = run_stress(model, cases, out=tmp_path / "stress", **few)["rows"]
    report = evaluate(load(model, device="cpu"), cases, tmp_path / "eval", progress=False)
    metrics = report.report["metrics"]
    for name, within in (("volume_auroc", 0), ("slice_auroc", 0), ("pixel_auroc", 5e-4)):
        assert clean[name] == pytest.approx(metrics[name], abs=within), name
    assert turned["studies"] == len(cases)
    assert turned["pixel_auroc"] != clean["pixel_auroc"]
