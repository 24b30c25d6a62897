"""A model without head under the stress test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stressed import FEW, make_memory_model, require_figures_of_an_evaluation, rows_of

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.research.robustness.stress import require_complete, run_stress


@pytest.fixture(scope="module")
def cases(cohort: Path) -> list[dict[str, Any]]:
    return find_cases(cohort / "datalist.json", "test")


def test_model_without_head_that_sees_neighbours_is_stressed_as_it_is_evaluated(
    cases: list[dict[str, Any]], cohort: Path, tmp_path: Path
) -> None:
    model = make_memory_model(tmp_path / "memory.pt")
    few = {**FEW, "severities": [5]}
    report = run_stress(model, cases, out=tmp_path / "stress", **few)
    require_complete(report)
    require_figures_of_an_evaluation((tmp_path / "stress", report), model, cohort, tmp_path)
    noisy = rows_of(report)["rician_noise", 5]
    assert noisy["slice_auroc"] != report["rows"][0]["slice_auroc"]
