"""Two encoders as one: the features of both, in training, packages and exported files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from small_heads import small_detector
from torch import Tensor, nn

from mcmiad_monai.data.cache_key import cache_key
from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.networks.encoder import (
    FrozenEncoder,
    build_encoder,
    calibrate_batchnorm,
    empty_encoder,
    encoder_from_config,
)
from mcmiad_monai.networks.ensemble import EnsembleEncoder, member_weights
from mcmiad_monai.networks.folding import fold_batch_norms
from mcmiad_monai.networks.info import describe
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.networks.weights import WeightsError
from mcmiad_monai.runtime.cpu import encoding
from mcmiad_monai.runtime.export import export_model
from mcmiad_monai.runtime.gpu import accelerated

CNN, VIT = "test_efficientnet.r160_in1k", "test_vit"
NAME = f"{CNN}+{VIT}"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Weights of both models."""
    torch.manual_seed(4)
    paths = (tmp_path / "cnn.pth", tmp_path / "vit.pth")
    for name, path in zip((CNN, VIT), paths, strict=True):
        torch.save(timm.create_model(name).state_dict(), path)
    return paths


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 1, 224, 224, generator=torch.Generator().manual_seed(0))


def norms(encoder: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]


def uncalibrated(**options: int) -> FrozenEncoder:
    """An ensemble whose BatchNorms are not those of an untrained network."""
    encoder = empty_encoder(NAME, pool="area", **options)  # type: ignore[arg-type]
    for norm in norms(encoder):
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    encoder.update_digest()
    return encoder


def test_features_are_those_of_the_members_alone(files: tuple[Path, Path]) -> None:
    cnn, vit = files
    both = build_encoder(NAME, weights=f"{cnn}+{vit}", pool="area", layers=[2, 4])
    alone = [
        build_encoder(CNN, weights=cnn, pool="area"),
        build_encoder(VIT, weights=vit, pool="area", layers=[2, 4]),
    ]
    assert not torch.equal(alone[0].mean, alone[1].mean)  # each has its own normalisation
    assert torch.equal(both(images()), torch.cat([one(images()) for one in alone], dim=1))
    assert both.member_channels == tuple(one.out_channels for one in alone)
    assert both.stage_channels == (*alone[0].stage_channels, 64, 64)
    assert both.out_channels == sum(both.stage_channels)
    assert alone[0].member_channels == (alone[0].out_channels,)


def test_provenance_has_one_entry_a_member(files: tuple[Path, Path]) -> None:
    cnn, vit = files
    provenance = build_encoder(NAME, weights=f"{cnn}+{vit}").provenance
    assert [one["name"] for one in provenance["members"]] == [CNN, VIT]
    assert [one["file_sha256"] for one in provenance["members"]] == [*map(file_sha256, files)]
    assert (provenance["name"], provenance["weights"]) == (NAME, "file + file")
    assert json.loads(json.dumps(provenance)) == provenance


def test_digest_and_kept_features_follow_every_member() -> None:
    encoder = uncalibrated()
    seen = []
    for parameter in (None, *(next(m.parameters()) for m in encoder.members)):
        if parameter is not None:
            parameter.add_(1)
            encoder.update_digest()
        key = cache_key([], lambda case: case, {}, encoder.provenance)
        seen.append((encoder.provenance["tensors_sha256"], key))
    digests, keys = map(set, zip(*seen, strict=True))
    assert len(digests) == len(keys) == 3


@pytest.mark.parametrize("word", ["pretrained", "packaged", "random"])
def test_one_word_is_for_all_members(word: str) -> None:
    assert member_weights(word, 3) == [word] * 3


def test_plus_in_the_path_of_an_existing_file_is_part_of_it(tmp_path: Path) -> None:
    odd, plain = tmp_path / "imagenet+jft.pth", tmp_path / "vit.pth"
    odd.touch()
    for parts in ([str(odd), str(plain)], ["packaged", str(odd)], [str(odd), str(odd)]):
        assert member_weights("+".join(parts), 2) == parts
    assert member_weights(str(odd), 1) == [str(odd)]
    with pytest.raises(WeightsError, match="names 1 weights, and the encoder has 2 members"):
        member_weights(str(odd), 2)


def test_paths_that_can_be_read_in_two_ways_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a+b", "c", "a", "b+c"):
        Path(name).touch()
    with pytest.raises(WeightsError, match=r"\['a', 'b\+c'\] or as \['a\+b', 'c'\].*Rename"):
        member_weights("a+b+c", 2)


@pytest.mark.parametrize(("weights", "found"), [("vit.pth", 1), ("a.pth+b.pth+c.pth", 3)])
def test_wrong_number_of_weights_is_refused(weights: str, found: int) -> None:
    with pytest.raises(WeightsError, match=f"names {found} weights, .*2 members. Give one for"):
        build_encoder(NAME, weights=weights)


def test_digests_are_expected_of_every_member(files: tuple[Path, Path]) -> None:
    weights = "+".join(map(str, files))
    right = [file_sha256(file) for file in files]
    assert build_encoder(NAME, weights=weights, sha256="+".join(right))
    with pytest.raises(WeightsError, match="was expected"):
        build_encoder(NAME, weights=weights, sha256="+".join(reversed(right)))
    with pytest.raises(ValueError, match=r"has 1 digests, .*2 members"):
        build_encoder(NAME, weights=weights, sha256=right[0])


def test_layers_need_a_transformer_among_the_members() -> None:
    assert empty_encoder(NAME, layers=[0, 1, 2]).member_channels == (120, 192)
    with pytest.raises(ValueError, match=r"test_resnet\+test_convnext has stages"):
        empty_encoder("test_resnet+test_convnext", layers=[1])


def test_members_need_one_grid() -> None:
    with pytest.raises(ValueError, match=r"grids \[7, 14\].*same grid"):
        EnsembleEncoder([empty_encoder(CNN, grid=7), empty_encoder(VIT, grid=14)])


def test_package_brings_back_both_members(tmp_path: Path) -> None:
    detector = small_detector(uncalibrated(grid=7))
    save_package(tmp_path / "model.pt", detector)
    loaded = load_package(tmp_path / "model.pt")
    assert torch.equal(loaded(images()), detector(images()))
    assert loaded.encoder.member_channels == detector.encoder.member_channels
    assert loaded.encoder.provenance == detector.encoder.provenance
    assert loaded.encoder.members[1].provenance["name"] == VIT
    save_package(tmp_path / "again.pt", loaded)
    assert (tmp_path / "again.pt").stat().st_size == (tmp_path / "model.pt").stat().st_size


def test_config_through_json_rebuilds_three_members() -> None:
    encoder = empty_encoder(f"{NAME}+test_resnet", seed=3)
    rebuilt = encoder_from_config(json.loads(json.dumps(encoder.config)))
    rebuilt.load_state_dict(encoder.state_dict())
    assert torch.equal(rebuilt(images()), encoder(images()))


@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
def test_exported_file_gives_the_heatmaps_of_pytorch(suffix: str, tmp_path: Path) -> None:
    detector = small_detector(uncalibrated(grid=7))
    if suffix == ".ts":
        found = torch.jit.load(str(export_model(detector, tmp_path / "model.ts")))(images(3))
    else:
        runtime = pytest.importorskip("onnxruntime", reason="it comes with the extra export")
        path = export_model(detector, tmp_path / "model.onnx")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"image": images(3).numpy()})[0])
    torch.testing.assert_close(found, detector(images(3)), rtol=1e-4, atol=1e-4)


def test_batch_norms_are_folded_in_the_members_that_have_some() -> None:
    encoder = uncalibrated()
    before, expected = encoder.provenance, encoder(images())
    folded = fold_batch_norms(encoder)
    assert norms(folded) == []
    assert len(norms(encoder)) > 0
    assert folded.member_channels == encoder.member_channels
    assert encoder.provenance == before
    torch.testing.assert_close(folded(images()), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(images()), expected, rtol=0, atol=0)


def test_fast_forms_give_the_same_features() -> None:
    encoder = uncalibrated()
    expected = encoder(images())
    with torch.inference_mode():
        found = encoding(encoder, torch.device("cpu"))(images())
        half = accelerated(fold_batch_norms(encoder), torch.device("cpu"), "bfloat16")(images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    parts = zip(
        *(x.float().split(encoder.member_channels, 1) for x in (half, expected)), strict=True
    )
    for one, other in parts:
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.99


def test_only_random_members_are_calibrated(files: tuple[Path, Path]) -> None:
    cnn, _ = files
    with pytest.warns(UserWarning, match=f"the encoder {CNN} has RANDOM"):
        encoder = build_encoder(f"{CNN}+{CNN}", weights=f"{cnn}+random")
    known, random = encoder.members
    digests = [member.provenance["tensors_sha256"] for member in encoder.members]
    calibrate_batchnorm(encoder, images(4).split(2))
    assert known.provenance["tensors_sha256"] == digests[0]
    assert random.provenance["tensors_sha256"] != digests[1]
    assert "batchnorm" not in known.provenance
    assert random.provenance["batchnorm"] == "calibrated on 4 images"
    assert not any(module.training for module in encoder.modules())


def test_costs_are_those_of_each_member_and_their_sum() -> None:
    detector = small_detector(empty_encoder(NAME))
    *parts, total = describe(detector)
    assert [row.part for row in parts] == [f"encoder {CNN}", f"encoder {VIT}", "head"]
    assert total.flops == sum(row.flops for row in parts)
    assert total.parameters == sum(p.numel() for p in detector.parameters())
