"""Model files that somebody else wrote, or damaged: one clear message, or the same model."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import small_detector
from torch import Tensor

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.networks.encoder import build_encoder, empty_encoder
from mcmiad_monai.networks.extra_state import EXTRA_STATE, decode, encode
from mcmiad_monai.networks.memory import NormalMemory
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.trunks import empty_tower
from mcmiad_monai.networks.weights import WeightsError
from mcmiad_monai.predictor import load

DIGESTS = ("format", "weights_sha256", "content_sha256")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model, with head, memory and thresholds, of 0.5 MB."""
    encoder = empty_encoder("test_efficientnet", grid=7, seed=11)
    score = AnomalyScore(sources={"head": 1.0, "memory-cosine": 1.0})
    detector = small_detector(encoder, score, rounds=2, seed=12)
    channels = encoder.out_channels
    tokens = torch.randn(20, channels, generator=torch.Generator().manual_seed(0))
    memory = NormalMemory.of_tokens(tokens, mean=torch.zeros(channels), std=torch.ones(channels))
    detector.set_memories({"cosine": memory})
    detector.calibration = Calibration(1.0, 0.005, 2.0, 3.0, 0.05, 10, 10, 10, 10).to_dict()
    detector.provenance["training"] = {"modality": "brain_mri", "slice_range": [0.0, 1.0]}
    path = tmp_path_factory.mktemp("packaged") / "model.pt"
    save_package(path, detector)
    return path


@pytest.fixture(scope="module")
def state(packaged: Path) -> dict[str, Tensor]:
    return dict(torch.load(packaged, weights_only=True))


def written(path: Path, state: dict[str, Tensor], described: dict[str, Any]) -> Path:
    """A model file with these tensors and this description, and digests that fit both."""
    weights = {name: tensor for name, tensor in state.items() if name != EXTRA_STATE}
    plain = {key: value for key, value in described.items() if key not in DIGESTS}
    torch.save({**weights, EXTRA_STATE: encode(plain, weights)}, path)
    return path


def refused(path: Path) -> str:
    """The message with which a model file is refused."""
    with pytest.raises(WeightsError) as caught:
        load(path, device="cpu", engine="torch")
    message = str(caught.value)
    assert len(message) < 1500
    return message


def places(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys of nested mappings."""
    if not isinstance(content, dict):
        return []
    below = [place for key, value in content.items() for place in places(value, (*path, key))]
    return [*((*path, key) for key in content), *below]


def test_any_value_of_another_kind_is_refused_or_harmless(
    state: dict[str, Tensor], packaged: Path, tmp_path: Path
) -> None:
    """A few dozen changes of what the model says of itself, each with digests that fit."""
    described = decode(state[EXTRA_STATE])
    expected = load(packaged, device="cpu", engine="torch").detector
    chosen = random.Random(0)
    values = [None, "text", [1], {"a": 1}, -1, 10**12, 1e300, float("nan"), float("inf")]
    of_use = [p for p in places(described) if p[0] in ("config", "calibration", "provenance")]
    refusals = 0
    for place in chosen.sample(of_use, 60):
        changed = copy.deepcopy(described)
        below = changed
        for key in place[:-1]:
            below = below[key]
        value = chosen.choice([*values, "leave out"])
        if value == "leave out":
            del below[place[-1]]
        else:
            below[place[-1]] = value
        path = written(tmp_path / "model.pt", state, changed)
        try:
            found = load(path, device="cpu", engine="torch").detector
        except WeightsError:
            refusals += 1
            continue
        for (name, tensor), other in zip(
            found.weights().items(), expected.weights().values(), strict=True
        ):
            assert torch.equal(tensor, other), (place, value, name)
    assert refusals > 25


HUGE = 10**9


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("config head dim", HUGE),
        ("config head rounds", HUGE),
        ("config head prior_shape", [HUGE, HUGE]),
        ("config head decoder", {"rounds": HUGE}),
        ("config memories cosine size", HUGE),
        ("config memories cosine size", 1024),  # no more than other sizes, and no tensor has it
        ("config encoder grid", HUGE),
        ("config encoder grid", 1000),
        ("config encoder trunk indices", [HUGE]),
        ("config encoder trunk name", "open_clip:x"),
        ("config encoder members", []),
        ("config score sources", {"head": float("nan")}),
        ("config score smooth_sigma", float("inf")),
        ("config", []),
        ("config memories", "text"),
        ("calibration pixel_threshold", float("nan")),
        ("calibration pixel_threshold", 0.0),
        ("calibration slice_threshold", float("nan")),
        ("calibration volume_threshold", "text"),
        ("calibration typical_heat", [float("inf")]),
        ("calibration typical_heat", 5),
        ("calibration unknown", 5),
        ("calibration", {"modalities": {"brain_mri": {}}}),
        ("calibration", {"modalities": [1]}),
        ("calibration", "text"),
        ("provenance", None),
        ("provenance training modality", "abdomen"),
        ("provenance training modality", ["brain_mri"]),
        ("provenance training slice_range", [0.0, float("nan")]),
        ("provenance training slice_range", 3),
        ("provenance training region", "../.."),
        ("provenance training method", "text"),
        ("provenance training method", {"context": 10**6}),
        ("provenance training method", {"field_of_view": "all"}),
    ],
)
def test_what_a_model_says_of_itself_is_checked_before_it_is_built(
    state: dict[str, Tensor], tmp_path: Path, place: str, value: Any
) -> None:
    changed = decode(state[EXTRA_STATE])
    *above, last = place.split(" ")
    below = changed
    for key in above:
        below = below[key]
    below[last] = value
    assert str(tmp_path) in refused(written(tmp_path / "model.pt", state, changed)) or (
        above[:1] == ["calibration"] or last == "calibration"
    )


def with_nan(tensor: Tensor) -> Tensor:
    changed = tensor.float().clone()
    changed.view(-1)[0] = float("nan")
    return changed


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("head.project.weight", with_nan),
        ("memories.cosine.tokens", lambda t: t * float("inf")),
        ("heat_scale", torch.zeros_like),
        ("heat_scale", torch.neg),
        ("memories.cosine.units", torch.zeros_like),
        ("head.project.weight", lambda _: torch.zeros(1).expand(10**7, 10**7)),
        ("head.project.weight", lambda t: t.to_sparse()),
        ("head.project.weight", lambda t: t.to(torch.complex64)),
        ("head.project.weight", lambda t: t.to("meta")),
        ("head.project.weight", lambda t: t[:1]),
        ("memories.cosine.tokens", lambda t: t[:, :5]),
        ("encoder.mean", lambda t: t.flatten()),
    ],
)
def test_tensors_that_are_not_plain_finite_and_of_their_size_are_refused(
    state: dict[str, Tensor], tmp_path: Path, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    path = tmp_path / "model.pt"
    torch.save({**state, name: change(state[name])}, path)
    assert str(path) in refused(path)
    with pytest.MonkeyPatch.context() as patched:  # as if somebody had made the digest fit
        patched.setattr("mcmiad_monai.networks.detector.extra_state.mismatch", lambda *_: None)
        patched.setattr("mcmiad_monai.networks.package.mismatch", lambda *_: None)
        assert str(path) in refused(path)


def raw(path: Path, kind: str, whole: bytes) -> None:
    """Write what is no model file, or only a part of one."""
    nested: Any = torch.zeros(1)
    for _ in range(200):
        nested = [nested]
    plain: dict[str, Any] = {
        "empty": b"",
        "cut short": whole[: len(whole) // 2],
        "end alone": whole[-3000:],
        "text": b"no model",
        "an old pickle": pickle.dumps({"model": 1}),
        "PK alone": b"PK\3\4" + bytes(200),
    }
    objects: dict[str, Any] = {
        "a list": [torch.zeros(1)],
        "a tensor": torch.zeros(1),
        "no tensors": {EXTRA_STATE: "text"},
        "numbers as names": {EXTRA_STATE: torch.zeros(1), 5: torch.zeros(1)},
        "JSON of a list": {EXTRA_STATE: torch.tensor(list(b"[1]"), dtype=torch.uint8)},
        "nested JSON": {EXTRA_STATE: torch.tensor(list(b"[" * 10**5), dtype=torch.uint8)},
        "floats as JSON": {EXTRA_STATE: torch.rand(5)},
        "an odd layout": {EXTRA_STATE: torch.tensor(list(b'{"format": "x"}'), dtype=torch.uint8)},
        "a newer layout": {EXTRA_STATE: torch.tensor(list(b'{"format": 99}'), dtype=torch.uint8)},
        "first layout, odd": dict.fromkeys(
            ("model", "config", "provenance", "calibration", "format"), 5
        ),
        "nested": {EXTRA_STATE: nested},
    }
    if kind in plain:
        path.write_bytes(plain[kind])
    else:
        torch.save(objects[kind], path)


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "cut short", "end alone", "text", "an old pickle", "PK alone", "a list"),
        *("a tensor", "no tensors", "numbers as names", "JSON of a list", "nested JSON"),
        *("floats as JSON", "an odd layout", "a newer layout", "first layout, odd", "nested"),
    ],
)
def test_other_files_are_refused(packaged: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    raw(path, kind, packaged.read_bytes())
    assert str(path) in refused(path)


class Runs:
    """A pickle that runs a command when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_model_file_does_not_run(
    state: dict[str, Tensor], tmp_path: Path, archive: bool
) -> None:
    mark, path = tmp_path / "ran", tmp_path / "model.pt"
    content = {**state, "code": Runs(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    assert str(path) in refused(path)
    assert not mark.exists()


def test_file_that_unpacks_to_more_than_it_has_is_refused(tmp_path: Path) -> None:
    """PyTorch unpacks what is packed: 0.2 MB are 200 MB."""
    plain, path = tmp_path / "plain.pt", tmp_path / "model.pt"
    torch.save({EXTRA_STATE: torch.zeros(1_000_000)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    assert "unpacks to 4" in refused(path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every try to reach a network, each of which fails."""
    tried: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        tried.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


HUB_NAMES = [
    "hf-hub:timm/tf_efficientnet_lite0.in1k",
    "hf_hub:timm/resnet18",
    "local-dir:/tmp",
    "https://example.org/model",
]


@pytest.mark.parametrize("name", HUB_NAMES)
def test_encoder_of_a_model_file_is_never_asked_for_at_a_hub(
    state: dict[str, Tensor], tmp_path: Path, offline: list[Any], name: str
) -> None:
    changed = decode(state[EXTRA_STATE])
    changed["config"]["encoder"]["trunk"]["name"] = name
    assert "timm does not know the model" in refused(written(tmp_path / "m.pt", state, changed))
    changed["config"]["encoder"]["trunk"]["pretrained"] = True
    assert "pretrained" in refused(written(tmp_path / "m.pt", state, changed))
    with pytest.raises(ValueError, match="timm does not know the model"):
        build_encoder(name, weights="random")
    assert not offline


def test_tower_of_timm_is_not_built(offline: list[Any]) -> None:
    """OpenCLIP would fetch its weights."""
    vision = {"timm_model_name": "resnet18", "timm_model_pretrained": True}
    with pytest.raises(ValueError, match="timm's 'resnet18'"):
        empty_tower({"embed_dim": 8, "vision_cfg": vision, "quick_gelu": False})
    assert not offline


@pytest.mark.parametrize("size", [{"width": 10**6}, {"layers": 10**9}, {"width": float("nan")}])
def test_tower_of_any_size_is_not_built(
    state: dict[str, Tensor], tmp_path: Path, size: dict[str, float]
) -> None:
    changed = decode(state[EXTRA_STATE])
    vision = {"width": 64, "layers": 1, "head_width": 32, "image_size": 224, "patch_size": 32}
    tower = {"embed_dim": 8, "vision_cfg": {**vision, **size}, "quick_gelu": False}
    tower |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    trunk = changed["config"]["encoder"]["trunk"]
    trunk |= {"name": "open_clip:x", "tower": json.dumps(tower), "indices": [0], "plain": True}
    assert "of the OpenCLIP tower" in refused(written(tmp_path / "m.pt", state, changed))
