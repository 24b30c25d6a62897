"""The model file: what it holds, what reads it, and what is refused."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path

import pytest
import torch
from monai.networks import copy_model_state
from small_heads import small_detector

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.networks.extra_state import BLOCK, EXTRA_STATE, decode, encode
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.weights import WeightsError


@pytest.fixture
def detector() -> MCMIADDetector:
    encoder = empty_encoder("test_efficientnet", grid=7, seed=11)
    score = AnomalyScore(
        terms="cos", stage_weights=(0, 0, 1, 2), stage_channels=encoder.stage_channels
    )
    built = small_detector(encoder, score, rounds=4, standardize_features=True, seed=12)
    built.head.set_feature_statistics(torch.full((120,), 0.1), torch.full((120,), 2.0))
    built.heat_scale.fill_(0.3)
    return built


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_package_brings_back_the_detector_without_a_network(detector, tmp_path):
    save_package(tmp_path / "model.pt", detector, calibration={"slice": 1.5}, provenance={"n": 3})
    loaded = load_package(tmp_path / "model.pt")
    image = torch.rand(2, 1, 112, 112)
    with torch.no_grad():
        assert torch.equal(loaded(image), detector(image))
    assert not loaded.training
    assert loaded.calibration == {"slice": 1.5}
    assert loaded.provenance["n"] == 3
    assert loaded.provenance["encoder"] == detector.encoder.provenance
    assert loaded.provenance["text_prior"]["prompts"] == ["healthy"]


def test_packing_again_keeps_everything(detector, tmp_path):
    save_package(tmp_path / "a.pt", detector, calibration={"slice": 1.5}, provenance={"n": 3})
    first = load_package(tmp_path / "a.pt")
    save_package(tmp_path / "b.pt", first)
    second = load_package(tmp_path / "b.pt")
    assert second.calibration == first.calibration
    assert second.provenance == first.provenance
    assert second.encoder.provenance == detector.encoder.provenance


def saved(detector: MCMIADDetector, path: Path) -> dict[str, torch.Tensor]:
    save_package(path, detector)
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return content


def test_the_file_is_the_state_dict_of_the_detector(detector, tmp_path):
    content = saved(detector, tmp_path / "model.pt")
    expected = detector.state_dict()
    assert content.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in content.items())
    extra = content[EXTRA_STATE]
    assert (extra.dtype, len(extra) % BLOCK) == (torch.uint8, 0)
    assert decode(extra)["config"].keys() == {"encoder", "head", "score", "memories"}


def test_a_file_of_the_first_layout_is_read(detector, tmp_path):
    detector.calibration = {"slice": 1.5}
    described = {key: json.dumps(value) for key, value in detector.description.items()}
    content = {"model": detector.weights(), **described, "format": 1}
    torch.save(content, tmp_path / "model.pt")
    loaded = load_package(tmp_path / "model.pt")
    assert loaded.calibration == {"slice": 1.5}
    assert loaded.provenance == detector.provenance
    image = torch.rand(2, 1, 112, 112)
    with torch.no_grad():
        assert torch.equal(loaded(image), detector(image))


def test_thresholds_of_other_weights_are_refused(detector, tmp_path):
    content = saved(detector, tmp_path / "model.pt")
    content["heat_scale"] = content["heat_scale"] * 2
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="do not belong together"):
        load_package(tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="do not belong together"):
        detector.load_state_dict(content)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dict_is_loaded_into_another_detector(detector, tmp_path, prefix):
    detector.calibration = {"slice": 1.5}
    content = saved(detector, tmp_path / "model.pt")
    other = copy.deepcopy(detector)
    other.calibration = {"a longer one": list(range(100))}
    torch.nn.init.zeros_(other.head.project.weight)
    whole = torch.nn.ModuleDict({"module": other}) if prefix else other
    whole.load_state_dict({prefix + name: tensor for name, tensor in content.items()})
    assert other.calibration == {"slice": 1.5}
    assert torch.equal(other.head.project.weight, detector.head.project.weight)


def test_monai_copies_weights_and_thresholds_together(detector, tmp_path):
    detector.calibration = {"slice": 1.5}
    content = saved(detector, tmp_path / "model.pt")
    other = copy.deepcopy(detector)
    other.calibration = {"a longer one": list(range(100))}
    torch.nn.init.zeros_(other.head.project.weight)
    _, _, unchanged = copy_model_state(other, content)
    assert not unchanged
    assert other.calibration == {"slice": 1.5}
    assert torch.equal(other.head.project.weight, detector.head.project.weight)


def test_a_failed_write_leaves_the_old_package_and_no_litter(detector, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_package(path, detector)
    old = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_package(path, detector, provenance={"n": 1})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_default_package_is_about_27_megabytes(tmp_path):
    encoder = empty_encoder()
    detector = MCMIADDetector(encoder, build_head(prior=torch.eye(15, 512)))
    save_package(tmp_path / "model.pt", detector)
    assert (tmp_path / "model.pt").stat().st_size < 27.5e6


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="there is no packaged model"):
        load_package(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2]])
def test_a_checkpoint_that_is_no_package_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="is not a packaged model: it holds"):
        load_package(tmp_path / "model.pt")


def test_a_damaged_file_is_refused(detector, tmp_path):
    path: Path = tmp_path / "model.pt"
    save_package(path, detector)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="is not a packaged model"):
        load_package(path)


def test_a_newer_layout_is_refused(detector, tmp_path):
    content = saved(detector, tmp_path / "model.pt")
    described = {**decode(content[EXTRA_STATE]), "format": 4}
    del described["content_sha256"]
    text = bytearray(json.dumps(described).encode())
    torch.save(
        {**content, EXTRA_STATE: torch.frombuffer(text, dtype=torch.uint8)}, tmp_path / "m.pt"
    )
    with pytest.raises(WeightsError, match=r"layout 4.*update"):
        load_package(tmp_path / "m.pt")


def test_an_extra_state_of_another_project_is_refused(tmp_path):
    torch.save({EXTRA_STATE: torch.tensor([1, 2], dtype=torch.uint8)}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="not that of a model of this project"):
        load_package(tmp_path / "model.pt")


def test_tensors_that_do_not_fit_are_refused(detector, tmp_path):
    weights = detector.weights()
    del weights["head.project.weight"]
    content = {**weights, EXTRA_STATE: encode(detector.description, weights)}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="do not fit the model"):
        load_package(tmp_path / "model.pt")
