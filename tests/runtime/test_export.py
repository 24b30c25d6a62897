"""The export at the end of a training."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.runtime import export as exporting
from mcmiad_monai.runtime.export import ONNX_MODULES, Exporter, ExportError


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths that would have been exported to; the export itself is left out."""
    paths: list[Path] = []

    def write(_: Any, path: Path) -> Path:
        paths.append(path)
        return path

    monkeypatch.setattr(exporting, "load_package", lambda path: path)
    monkeypatch.setattr(exporting, "export_model", write)
    return paths


@pytest.fixture(params=[True, False], ids=["with the extra", "without the extra"])
def extra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    find = importlib.util.find_spec

    def found(name: str, *args: Any) -> Any:
        return request.param or None if name in ONNX_MODULES else find(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    return bool(request.param)


@pytest.mark.parametrize(
    ("when", "device", "exports"),
    [("auto", "cpu", True), ("auto", "cuda", False), (False, "cpu", False)],
)
def test_auto_exports_on_a_cpu_where_the_extra_is(
    written: list[Path], extra: bool, when: Any, device: str, exports: bool
) -> None:
    exporter = Exporter("models/model.pt", when, device)
    exporter.check()
    expected = Path("models/model.onnx") if extra and exports else None
    assert exporter.run() == expected
    assert written == [expected] * bool(expected)


def test_true_without_the_extra_is_refused_before_the_training(extra: bool) -> None:
    exporter = Exporter("model.pt", True)
    if extra:
        exporter.check()
    else:
        with pytest.raises(ExportError, match=r"onnx is not installed.*\[export\]"):
            exporter.check()
    with pytest.raises(ValueError, match="must be auto, true or false"):
        Exporter("model.pt", "onnx")  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["auto", True])
def test_a_failure_costs_nothing_but_the_export(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: Any
) -> None:
    def fail(*_: Any) -> Path:
        raise ExportError("other heatmaps")

    monkeypatch.setattr(exporting, "load_package", lambda path: path)
    monkeypatch.setattr(exporting, "export_model", fail)
    monkeypatch.setattr(exporting, "_missing_modules", list)
    exporter = Exporter("model.pt", when)
    if when is True:
        with pytest.raises(ExportError, match="other heatmaps"):
            exporter.run()
        return
    with caplog.at_level(logging.WARNING):
        assert exporter.run() is None
    assert "model.pt is ready, but was not exported: other heatmaps" in caplog.text
