"""Engines: the same heatmaps as PyTorch, and no file of another model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mcmiad_monai.exporting import METADATA_KEY, ExportError, export_model
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.runtimes import EngineNetwork, open_network

SIZE = 64


def small_detector(seed: int = 0) -> MCMIADDetector:
    encoder = build_encoder("test_efficientnet.r160_in1k", weights="random", grid=14)
    head = build_head(
        seed=seed,
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        prior=encode_hashing(["healthy"], dim=16),
        dim=32,
        hidden=64,
        rounds=2,
    )
    detector = MCMIADDetector(encoder, head).eval()
    detector.heat_scale.fill_(3.0)
    detector.calibration = {"pixel_threshold": 3.0}
    return detector


@pytest.fixture(scope="module")
def detector() -> MCMIADDetector:
    return small_detector()


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
    assert isinstance(network, EngineNetwork)
    for slices in (1, 2, 7):
        images = torch.rand(slices, 1, SIZE, SIZE)
        with torch.inference_mode():
            torch.testing.assert_close(network(images), detector(images), rtol=0, atol=1e-4)


def test_channels_last_changes_no_number(detector: MCMIADDetector) -> None:
    images = torch.rand(3, 1, SIZE, SIZE)
    with torch.inference_mode():
        expected = detector(images)
        found = open_network(small_detector())(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_file_of_another_model_is_refused(exported: Path) -> None:
    with pytest.raises(ExportError, match="exported from another model"):
        open_network(small_detector(seed=1), engine="onnxruntime", path=exported)


def test_file_that_is_missing_says_how_to_make_it(detector: MCMIADDetector, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="mcmiad export"):
        open_network(detector, engine="onnxruntime", path=tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="'onnx' is not known"):
        open_network(detector, engine="onnx")  # type: ignore[arg-type]


def test_torchscript_holds_thresholds(detector: MCMIADDetector, tmp_path: Path) -> None:
    path = export_model(detector, tmp_path / "model.ts", size=SIZE)
    extra = {METADATA_KEY: ""}
    network = torch.jit.load(str(path), _extra_files=extra)
    assert json.loads(extra[METADATA_KEY])["calibration"] == {"pixel_threshold": 3.0}
    images = torch.rand(5, 1, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), detector(images), rtol=0, atol=1e-4)


def test_export_that_differs_is_not_kept(
    detector: MCMIADDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcmiad_monai.exporting.EXPORT_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differ by .* from PyTorch's"):
        export_model(detector, tmp_path / "model.ts", size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_suffix_names_the_format(detector: MCMIADDetector, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'\.onnx', '\.ts'"):
        export_model(detector, tmp_path / "model.bin")
