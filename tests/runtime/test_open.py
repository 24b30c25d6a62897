"""Engines: the same heatmaps as PyTorch, and no file of another model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small_heads import small_detector
from torch import nn

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.runtime.cpu import ACCELERATOR_SLICES, SliceWorkers, slices_at_once
from mcmiad_monai.runtime.export import METADATA_KEY, ExportError, export_model
from mcmiad_monai.runtime.open import open_network

SIZE = 64


def exportable(seed: int = 0) -> MCMIADDetector:
    encoder = build_encoder("test_efficientnet.r160_in1k", weights="random", grid=14)
    detector = small_detector(encoder, seed=seed, dim=32, heads=8, hidden=64, neighbourhood=7)
    detector.heat_scale.fill_(3.0)
    detector.calibration = {"pixel_threshold": 3.0}
    return detector


@pytest.fixture(scope="module")
def detector() -> MCMIADDetector:
    return exportable()


@pytest.fixture(scope="module")
def exported(detector: MCMIADDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    return export_model(detector, tmp_path_factory.mktemp("engine") / "model.onnx", size=SIZE)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engine_gives_the_heatmaps_of_pytorch_for_any_number_of_slices(
    detector: MCMIADDetector, exported: Path, engine: str
) -> None:
    pytest.importorskip(engine, reason="the extra export is not installed")
    network = open_network(detector, engine=engine, path=exported)  # type: ignore[arg-type]
    assert isinstance(network, SliceWorkers)
    for slices in (1, 2, 7):
        images = torch.rand(slices, 1, SIZE, SIZE)
        with torch.inference_mode():
            torch.testing.assert_close(network(images), detector(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_model_of_colours_runs_by_every_engine(tmp_path: Path, engine: str) -> None:
    if engine != "torch":
        pytest.importorskip(engine, reason="the extra export is not installed")
    colours = exportable(seed=1)
    colours.provenance["training"] = {"method": {"keep_colours": True}}
    path = tmp_path / "model.onnx"
    if engine != "torch":
        export_model(colours, path, size=SIZE)
    network = open_network(colours, engine=engine, path=path)  # type: ignore[arg-type]
    images = torch.rand(3, 3, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), colours(images), rtol=0, atol=1e-4)


def test_encoder_whose_norms_stay_is_exported_all_the_same(
    detector: MCMIADDetector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    monkeypatch.setattr("mcmiad_monai.networks.detector.fold_batch_norms", lambda encoder: encoder)
    caplog.set_level("INFO")
    path = export_model(detector, tmp_path / "model.onnx", size=SIZE)  # compares with PyTorch
    assert [r.name for r in caplog.records] == []  # its exporter tells of every node
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert "BatchNormalization" not in kinds


def test_exported_attention_searches_for_no_queries_without_keys(exported: Path) -> None:
    """PyTorch's own does, in every round."""
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    operations = [node.op_type for node in onnx.load(str(exported)).graph.node]
    assert operations.count("Softmax") >= 3  # two attentions, and the weights of experts
    assert "IsNaN" not in operations


def test_pytorch_in_workers_gives_the_numbers_of_the_plain_network() -> None:
    detector = exportable()
    images = torch.rand(7, 1, SIZE, SIZE)
    with torch.inference_mode():
        expected = detector(images)
        found = open_network(detector)(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(detector(images), expected, rtol=0, atol=1e-4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())  # packed as it was


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back to Linux alone")
def test_opening_gives_freed_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        trimmed: ClassVar[list[int]] = []
        malloc_trim = trimmed.append

    monkeypatch.setattr("mcmiad_monai.runtime.open.ctypes.CDLL", lambda _: Library)
    open_network(exportable())
    assert Library.trimmed == [0]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_file_that_is_damaged_or_foreign_is_refused(
    detector: MCMIADDetector, tmp_path: Path, engine: str
) -> None:
    pytest.importorskip(engine, reason="the extra export is not installed")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(ExportError, match=r"cannot open .*export again"):
        open_network(detector, engine=engine, path=path)  # type: ignore[arg-type]
    torch.onnx.export(nn.ReLU(), (torch.ones(1, 1, 8, 8),), path, dynamo=True, verbose=False)
    with pytest.raises(ExportError, match="exported from another model"):
        open_network(detector, engine=engine, path=path)  # type: ignore[arg-type]


def test_torchscript_holds_thresholds(detector: MCMIADDetector, tmp_path: Path) -> None:
    path = export_model(detector, tmp_path / "model.ts", size=SIZE)
    extra = {METADATA_KEY: ""}
    network = torch.jit.load(str(path), _extra_files=extra)
    assert json.loads(extra[METADATA_KEY])["calibration"] == {"pixel_threshold": 3.0}
    assert "batch_norm" not in str(network.inlined_graph)
    images = torch.rand(5, 1, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), detector(images), rtol=0, atol=1e-4)


def test_export_that_differs_is_not_kept(
    detector: MCMIADDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcmiad_monai.runtime.export.EXPORT_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differ by .* from PyTorch's"):
        export_model(detector, tmp_path / "model.ts", size=SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_bfloat16_is_near_and_float32_and_told_where_the_processor_lacks_it(
    detector: MCMIADDetector, exported: Path, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    library = pytest.importorskip(engine, reason="the extra export is not installed")
    caplog.set_level("INFO")
    images = torch.rand(3, 1, SIZE, SIZE)
    network = open_network(exportable(), engine=engine, path=exported, precision="bfloat16")
    if engine == "openvino":
        able = "BF16" in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert ("no instructions for bfloat16" in caplog.text) != able
        assert f"in {'bfloat16' if able else 'float32'}" in caplog.text.splitlines()[-1]
    with torch.inference_mode():
        expected, found = detector(images), network(images)
    assert found.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([expected.flatten(), found.flatten()]))[0, 1]
    assert float(correlation) > 0.98
    torch.testing.assert_close(found.mean(), expected.mean(), rtol=0.05, atol=0)


def test_what_cannot_be_opened_or_exported_says_what_can(
    detector: MCMIADDetector, exported: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"engine": "onnxruntime", "path": exported}
    with pytest.raises(ExportError, match="exported from another model"):
        open_network(exportable(seed=1), **given)
    with pytest.raises(ExportError, match="float32 on a CPU"):
        open_network(detector, **given, precision="bfloat16")
    with pytest.raises(ExportError, match="mcmiad export"):
        open_network(detector, engine="onnxruntime", path=tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="'onnx' is not known"):
        open_network(detector, engine="onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'int8' is not known"):
        open_network(detector, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"'\.onnx', '\.ts'"):
        export_model(detector, tmp_path / "model.bin")


def test_auto_takes_the_fastest_that_has_a_file_of_this_model(
    detector: MCMIADDetector,
    exported: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino", reason="the extra export is not installed")
    caplog.set_level("INFO")
    assert "onnxruntime" in open_network(detector, engine="auto", path=exported).name
    half = open_network(detector, engine="auto", path=exported, precision="bfloat16")
    assert "openvino" in half.name
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    assert "openvino" in open_network(detector, engine="auto", path=exported).name
    missing = tmp_path / "no.onnx"
    assert "PyTorch" in open_network(exportable(), engine="auto", path=missing).name
    assert "there is no exported file" in caplog.text
    other = open_network(exportable(seed=1), engine="auto", path=exported)
    assert "PyTorch" in other.name
    assert "exported from another model" in caplog.text


def test_engine_tells_how_many_slices_it_wants_at_once(
    detector: MCMIADDetector, exported: Path
) -> None:
    network = open_network(detector, engine="onnxruntime", path=exported)
    count = slices_at_once(network, torch.device("cpu"))
    assert count == network.slices_at_once >= 2 * torch.get_num_threads()
    assert slices_at_once(detector, torch.device("cpu")) == max(4, torch.get_num_threads())
    assert slices_at_once(detector, torch.device("cuda")) == ACCELERATOR_SLICES
