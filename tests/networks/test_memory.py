"""The memory of normal tokens: distances against plain loops, and its way through files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_heads import small_detector, small_head
from torch import Tensor

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.networks.memory import (
    Distance,
    MemoryConfig,
    NormalMemory,
    memory_from_config,
    prepare,
)
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.networks.score import AnomalyScore, intensity_of
from mcmiad_monai.runtime.export import export_model
from mcmiad_monai.runtime.open import open_network

CHANNELS, GRID, TOKENS = 6, 4, 20


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory_of(
    tokens: Tensor, distance: Distance = "cosine", groups: tuple[int, ...] = ()
) -> NormalMemory:
    """Memory of raw tokens (M, C) with channels that have to be standardised."""
    mean, std = torch.linspace(-1, 1, tokens.shape[1]), torch.linspace(0.5, 2, tokens.shape[1])
    split = groups or (tokens.shape[1],)
    kept = prepare(tokens[:, :, None, None], mean, std, distance, split)
    origin = torch.arange(3 * len(tokens)).reshape(-1, 3)
    return NormalMemory.of_tokens(
        kept, mean=mean, std=std, distance=distance, groups=groups, origin=origin
    )


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_distance_is_that_to_the_nearest_token(distance: Distance) -> None:
    kept, features = drawn(TOKENS, CHANNELS), drawn(2, CHANNELS, GRID, GRID, seed=1)
    memory = memory_of(kept, distance)
    mean, std = memory.mean.double().numpy(), memory.std.double().numpy()
    bank = (kept.double().numpy() - mean) / std
    expected = np.zeros((2, 1, GRID, GRID))
    nearest = np.zeros((2, GRID, GRID), dtype=int)
    for b, i, j in np.ndindex(2, GRID, GRID):
        token = (features[b, :, i, j].double().numpy() - mean) / std
        if distance == "l2":
            each = np.linalg.norm(bank - token, axis=1)
        else:
            lengths = np.linalg.norm(bank, axis=1) * np.linalg.norm(token)
            each = 1 - bank @ token / lengths
        expected[b, 0, i, j], nearest[b, i, j] = each.min(), each.argmin()
    found = memory.nearest(features)
    np.testing.assert_allclose(memory(features).numpy(), expected, atol=3e-3)  # kept in float16
    assert torch.equal(found.distance, memory(features))
    assert (found.token.numpy() == nearest).mean() > 0.95


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_what_it_remembers_has_no_distance(distance: Distance) -> None:
    kept = drawn(TOKENS, CHANNELS)
    memory = memory_of(kept, distance)
    features = kept[: GRID * GRID].T.reshape(1, CHANNELS, GRID, GRID)
    assert float(memory(features).max()) < (2e-3 if distance == "cosine" else 5e-3)
    assert float(memory(features).min()) >= 0
    assert memory.nearest(features).token.flatten().tolist() == list(range(GRID * GRID))


def test_encoders_of_an_ensemble_add_up_in_their_units() -> None:
    kept, features = drawn(TOKENS, CHANNELS), drawn(2, CHANNELS, GRID, GRID, seed=1)
    memory = memory_of(kept, groups=(2, 4))
    memory.units.copy_(torch.tensor([0.5, 2.0]))
    each = []
    for part in (slice(0, 2), slice(2, 6)):
        mean, std = memory.mean[part], memory.std[part]
        tokens = prepare(kept[:, part, None, None], mean, std, "cosine", (len(mean),))
        each.append(NormalMemory.of_tokens(tokens, mean=mean, std=std)(features[:, part]))
    assert torch.allclose(memory(features), each[0] / 0.5 + each[1] / 2.0, atol=1e-3)


def test_groups_and_distances_are_checked() -> None:
    with pytest.raises(ValueError, match="add up to 3"):
        MemoryConfig(size=2, channels=4, groups=(1, 2))
    with pytest.raises(ValueError, match="'l1' is not known"):
        MemoryConfig(size=2, channels=4, distance="l1")  # type: ignore[arg-type]


def test_a_memory_is_rebuilt_from_its_configuration() -> None:
    memory = memory_of(drawn(TOKENS, CHANNELS), groups=(2, 4))
    other = memory_from_config(memory.config)
    other.load_state_dict(memory.state_dict())
    features = drawn(1, CHANNELS, GRID, GRID, seed=2)
    assert torch.equal(other(features), memory(features))
    assert torch.equal(other.origin, memory.origin)


def detector_with(
    sources: dict[str, float], *, head: bool = True, symmetry: float = 0.4
) -> MCMIADDetector:
    """A detector with memories of both distances."""
    encoder = empty_encoder("test_efficientnet", grid=7, pool="area")
    score = AnomalyScore(
        terms="cos", sources=sources, symmetry=symmetry, smooth_sigma=3.0, image_score="hottest"
    )
    detector = small_detector(encoder)
    with torch.no_grad():
        tokens = encoder(images(4, seed=5)).transpose(0, 1).flatten(1).T  # (4 · g², C)
    memories = {d: memory_of(tokens, d) for d in ("cosine", "l2")}
    return MCMIADDetector(encoder, detector.head if head else None, score, memories).eval()


def images(count: int = 2, *, seed: int = 0, size: int = 224) -> Tensor:
    coarse = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    smooth[..., : size // 8] = 0  # some background
    return smooth


def test_a_heatmap_is_the_sum_of_its_sources_in_their_units() -> None:
    sources = {"head": 0.5, "memory-cosine": 0.2, "memory-l2": 3.0}
    detector = detector_with(sources, symmetry=0)
    inside = images() > 0
    with torch.no_grad():
        features = detector.features(images())
        maps = detector.source_maps(features, sources)
        total = sum(maps[name] / unit for name, unit in sources.items())
        expected = detector.score.upsample(total, inside.shape[-2:])
        assert torch.allclose(detector(images()), expected, atol=1e-5)


def test_brightness_can_be_a_source() -> None:
    detector = detector_with({"memory-cosine": 0.3, "intensity": 0.5}, symmetry=0)
    with torch.no_grad():
        features, bright = detector.features(images()), intensity_of(images())
        assert bright.shape == (2, 1, 56, 56)
        memory = torch.nn.functional.interpolate(
            detector.memories["cosine"](features), (56, 56), mode="bilinear"
        )
        expected = detector.score.upsample(memory / 0.3 + bright / 0.5, (224, 224))
        assert torch.allclose(detector(images()), expected, atol=1e-5)
    with pytest.raises(ValueError, match="made of 'intensity'"):
        detector.heatmap_from_features(features, images() > 0)


@pytest.mark.parametrize("head", [True, False], ids=["with a head", "memory alone"])
def test_a_package_holds_the_memory(head: bool, tmp_path: Path) -> None:
    detector = detector_with({"memory-cosine": 1.0}, head=head)
    save_package(tmp_path / "model.pt", detector, calibration={"slice": 1.5})
    other = load_package(tmp_path / "model.pt")
    with torch.no_grad():
        assert torch.equal(other(images()), detector(images()))
    assert (other.head is None) == (not head)
    assert other.memories["l2"].tokens.dtype == torch.float16
    assert torch.equal(other.memories["cosine"].origin, detector.memories["cosine"].origin)


@pytest.mark.parametrize("name", ["m.onnx", "m.ts"])
@pytest.mark.parametrize(
    "sources",
    [{"memory-cosine": 0.3}, {"memory-l2": 2.0, "intensity": 0.5}],
    ids=["cosine", "sum"],
)
def test_exported_memories_give_the_same_heatmaps(
    sources: dict[str, float], name: str, tmp_path: Path
) -> None:
    export_model(detector_with(sources), tmp_path / name)  # compares


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_every_engine_runs_a_memory(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    detector = detector_with({"memory-cosine": 0.3}, head=False)
    path = export_model(detector, tmp_path / "model.onnx")
    network = open_network(detector, engine=engine, path=path)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.allclose(network(images(3)), detector(images(3)), atol=2e-4)


def test_a_score_without_its_part_is_an_error() -> None:
    detector = detector_with({"head": 1.0}, head=False)
    with pytest.raises(ValueError, match=r"'head', and the model has only \['memory-cosine'"):
        detector(images())


def test_a_memory_of_another_encoder_is_refused() -> None:
    encoder = empty_encoder("test_efficientnet", grid=7)
    with pytest.raises(ValueError, match="memory cosine takes 6 channels"):
        MCMIADDetector(encoder, None, None, {"cosine": memory_of(drawn(3, CHANNELS))})


def test_a_memory_alone_has_nothing_to_train() -> None:
    detector = detector_with({"memory-cosine": 1.0}, head=False)
    assert not [name for name, p in detector.named_parameters() if p.requires_grad]
    assert [n for n, p in small_head().named_parameters() if p.requires_grad]
