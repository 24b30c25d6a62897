"""An exported file in which a bit has changed computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import small_detector

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.runtime.export import SEAL, ExportError, export_model, is_damaged
from mcmiad_monai.runtime.open import open_network

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
SIZE = 64


@pytest.fixture(scope="module")
def detector() -> MCMIADDetector:
    encoder = build_encoder("test_efficientnet.r160_in1k", weights="random", grid=14)
    return small_detector(encoder, dim=32, heads=8, hidden=64, neighbourhood=7)


@pytest.fixture(scope="module")
def exported(detector: MCMIADDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(detector, tmp_path_factory.mktemp("export") / "model.onnx", size=SIZE)


def damaged(source: Path, target: Path, place: int, bit: int = 6) -> Path:
    content = bytearray(source.read_bytes())
    content[place] ^= 1 << bit
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_asked_for_engine_refuses_a_damaged_file_and_auto_takes_pytorch(
    detector: MCMIADDetector,
    exported: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    share: float,
) -> None:
    place = int(share * exported.stat().st_size)
    path = damaged(exported, tmp_path / "model.onnx", place)
    engine: Any
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        with pytest.raises(ExportError, match=r"is damaged.*export again: mcmiad export"):
            open_network(detector, engine=engine, path=path)
    assert "PyTorch" in open_network(detector, engine="auto", path=path).name
    assert "is damaged" in caplog.text


def test_damaged_digest_is_seen_too(exported: Path, tmp_path: Path) -> None:
    assert not is_damaged(exported)
    assert is_damaged(damaged(exported, tmp_path / "model.onnx", -1, bit=0))


def test_engines_read_the_digest_as_metadata(exported: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(exported))
    onnx.checker.check_model(model)
    names = [entry.key for entry in model.metadata_props]
    assert names[-2:] == ["mcmiad", "mcmiad_sha256"]
    assert exported.read_bytes()[:-64].endswith(SEAL)
    assert exported.read_bytes()[-64:].decode() == model.metadata_props[-1].value


def test_file_of_an_older_version_without_digest_is_opened(
    detector: MCMIADDetector, exported: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.read_bytes()[: -len(SEAL) - 64])
    network = open_network(detector, engine="onnxruntime", path=path)
    images = torch.rand(2, 1, SIZE, SIZE)
    expected = open_network(detector, engine="onnxruntime", path=exported)(images)
    assert torch.equal(network(images), expected)


@pytest.mark.parametrize("content", [b"", b"no network", SEAL])
def test_auto_takes_pytorch_where_the_file_is_no_network(
    detector: MCMIADDetector, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "PyTorch" in open_network(detector, engine="auto", path=path).name
