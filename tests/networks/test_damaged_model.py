"""A model file in which a bit has changed is refused, or is the same model."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import small_detector
from torch import Tensor

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.networks.extra_state import DIGEST, EXTRA_STATE, decode, encode
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.networks.weights import WeightsError


@pytest.fixture(scope="module")
def packaged() -> dict[str, Tensor]:
    encoder = empty_encoder("test_efficientnet", grid=7, seed=11)
    path = io.BytesIO()
    detector = small_detector(encoder, rounds=4, seed=12)
    detector.calibration = {"volume_threshold": 1.25, "slice_threshold": "inf"}
    weights = detector.weights()
    torch.save({**weights, EXTRA_STATE: encode(detector.description, weights)}, path)
    path.seek(0)
    return dict(torch.load(path, weights_only=True))


@pytest.fixture
def model(packaged: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(packaged, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def flip(path: Path, place: int, bit: int) -> None:
    """Flip a bit of a byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize(
    "text",
    [
        b'"volume_threshold": 1.25',
        b'"slice_threshold": "inf"',
        b'"mse_reduction": "sum"',
        b'"top_k": 5',
        b'"weights_sha256": "',
        b'"content_sha256": "',
        b'"format": 3',
        b'"provenance": {',
    ],
)
@pytest.mark.parametrize("bit", [0, 1, 4])
def test_flipped_bit_in_what_describes_the_model_is_refused(
    model: Path, text: bytes, bit: int
) -> None:
    start = model.read_bytes().index(text)
    flip(model, start + len(text) - 1, bit)
    with pytest.raises(WeightsError, match=re.escape(str(model))):
        load_package(model)


def test_any_flipped_bit_of_any_tensor_is_refused(packaged: dict[str, Tensor], model: Path) -> None:
    content, found = model.read_bytes(), 0
    for tensor in packaged.values():
        data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if len(data) < 64 or content.count(data) != 1:
            continue  # too small to be found for sure in the file
        place = content.index(data) + len(data) // 2
        damaged = bytearray(content)
        damaged[place] ^= 0x40  # of a float, its exponent
        model.write_bytes(damaged)
        found += 1
        with pytest.raises(WeightsError, match=r"damaged|is not that of a model"):
            load_package(model)
    assert found > 20


def test_every_tensor_is_in_the_digest(packaged: dict[str, Tensor], model: Path) -> None:
    for name, tensor in packaged.items():
        if name == EXTRA_STATE:
            continue
        other = tensor.clone()
        other.view(-1)[-1] += 1
        torch.save({**packaged, name: other}, model)
        with pytest.raises(WeightsError, match=r"do not belong together, or one is damaged"):
            load_package(model)


def test_flipped_bits_anywhere_are_refused_or_harmless(model: Path) -> None:
    """The file is a zip archive with a pickle, whose own parts can be damaged too."""
    content = model.read_bytes()
    expected = load_package(model)
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(content), (40,), generator=generator).tolist()
    # where names and shapes are, and the table of the archive at the end
    places += [*range(0, 4000, 97), *range(len(content) - 4000, len(content), 97)]
    for k, place in enumerate(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (k % 8)
        model.write_bytes(damaged)
        try:
            found = load_package(model)
        except WeightsError:
            continue
        assert found.description == expected.description
        for (name, tensor), other in zip(
            found.weights().items(), expected.weights().values(), strict=True
        ):
            assert torch.equal(tensor, other), name


def test_model_without_the_newer_digest_is_read(packaged: dict[str, Tensor], model: Path) -> None:
    content: dict[str, Any] = decode(packaged[EXTRA_STATE])
    del content[DIGEST]
    text = bytearray(json.dumps({**content, "format": 2}).encode())
    torch.save({**packaged, EXTRA_STATE: torch.frombuffer(text, dtype=torch.uint8)}, model)
    assert load_package(model).calibration["volume_threshold"] == 1.25
    # but the newer layout never comes without one
    text = bytearray(json.dumps(content).encode())
    torch.save({**packaged, EXTRA_STATE: torch.frombuffer(text, dtype=torch.uint8)}, model)
    with pytest.raises(WeightsError, match="is damaged"):
        load_package(model)


def test_what_json_cannot_tell_apart_has_one_digest(tmp_path: Path) -> None:
    detector: MCMIADDetector = small_detector(empty_encoder("test_efficientnet", grid=7), rounds=2)
    calibration: dict[str, Any] = {"pair": (1.0, 2.5e-7), "by number": {3: float("nan")}}
    save_package(tmp_path / "model.pt", detector, calibration=calibration)
    found = load_package(tmp_path / "model.pt").calibration
    assert found["pair"] == [1.0, 2.5e-7]
