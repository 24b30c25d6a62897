"""The stressed model, its studies, and a test in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stressed import FEW, make_model

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.research.robustness.stress import run_stress


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="session")
def cases(cohort: Path) -> list[dict[str, Any]]:
    return find_cases(cohort / "datalist.json", "test")


@pytest.fixture(scope="session")
def straight(
    model: Path, cases: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Folder and report of a test in one go."""
    out = tmp_path_factory.mktemp("stress")
    return out, run_stress(model, cases, out=out, **FEW)
