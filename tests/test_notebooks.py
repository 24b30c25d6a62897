"""Notebooks run as they are, but for a small encoder and few studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
SMALLER = {
    'ENCODER = "tf_efficientnet_b4.aa_in1k"': 'ENCODER = "test_efficientnet.r160_in1k"',
    "STUDIES = 12": "STUDIES = 3",
    "EPOCHS = 2": "EPOCHS = 1",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for full, small in SMALLER.items():
        assert full in code
        code = code.replace(full, small)
    exec(compile(code, str(path), "exec"), names)
    assert (tmp_path / "first_heatmap" / "montage.png").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stripped(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
