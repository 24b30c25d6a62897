from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.networks.encoder import (
    DEFAULT_ENCODER,
    FrozenEncoder,
    build_encoder,
    calibrate_batchnorm,
    empty_encoder,
    encoder_from_config,
)
from mcmiad_monai.networks.info import part_cost
from mcmiad_monai.networks.weights import WeightsError

SMALL = "test_efficientnet.r160_in1k"
"""A network of 50 thousand parameters with the stages of an EfficientNet."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights of the whole small network, as a hub would hand them out."""
    torch.manual_seed(5)
    path = tmp_path / "whole.pth"
    torch.save(timm.create_model(SMALL).state_dict(), path)
    return path


def images(count: int = 2, size: int = 224) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def by_hand(name: str, encoder_weights: Path, image: torch.Tensor) -> list[torch.Tensor]:
    """Stages of the untruncated model through timm's own feature interface."""
    model = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3)).eval()
    model.load_state_dict(torch.load(encoder_weights, weights_only=True), strict=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in _statistics(name))
    with torch.no_grad():
        return list(model((image.expand(-1, 3, -1, -1) - mean) / std))


def _statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    cfg = timm.get_pretrained_cfg(name)
    return cfg.mean, cfg.std


def test_default_encoder_is_cut_behind_stride_16():
    encoder = empty_encoder()
    cost = part_cost("encoder", encoder, torch.zeros(1, 1, 224, 224))
    assert encoder.stage_channels == (24, 32, 56, 160)
    assert encoder.out_channels == 272
    assert cost.parameters == pytest.approx(3.64e6, rel=0.005)
    assert cost.flops == pytest.approx(1.84e9, rel=0.005)
    assert cost.trainable == 0


def test_truncated_features_equal_those_of_the_whole_model(checkpoint):
    encoder = build_encoder(SMALL, weights=checkpoint)
    expected = torch.cat(
        [
            F.interpolate(stage, (14, 14), mode="bilinear", align_corners=False)
            for stage in by_hand(SMALL, checkpoint, images())
        ],
        dim=1,
    )
    with torch.no_grad():
        assert torch.allclose(encoder(images()), expected, atol=1e-5)


def test_area_pooling_averages_all_pixels_of_a_cell(checkpoint):
    encoder = build_encoder(SMALL, weights=checkpoint, pool="area")
    with torch.no_grad():
        found = encoder(images()).split(encoder.stage_channels, dim=1)
    for mine, stage in zip(found, by_hand(SMALL, checkpoint, images()), strict=True):
        counts = F.avg_pool2d(torch.ones_like(stage), 3, 1, 1)
        smooth = F.avg_pool2d(stage, 3, 1, 1) / counts  # the border has no zeros mixed in
        side = stage.shape[-1] // 14
        expected = smooth.unflatten(3, (14, side)).unflatten(2, (14, side)).mean((3, 5))
        assert torch.allclose(mine, expected, atol=1e-5)


def test_grey_and_its_rgb_copy_give_the_same_features():
    encoder = empty_encoder(SMALL)
    assert torch.equal(encoder(images()), encoder(images().expand(-1, 3, -1, -1)))


def test_stays_frozen_whatever_is_asked(checkpoint):
    encoder = build_encoder(SMALL, weights=checkpoint)
    before = encoder(images())
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    encoder(images() * 3)
    assert torch.equal(encoder(images()), before)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_checkpoint_of_the_truncated_model_alone_is_enough(checkpoint, tmp_path):
    whole = build_encoder(SMALL, weights=checkpoint)
    path = tmp_path / "cut.pt"
    torch.save({"state_dict": whole.trunk.model.state_dict()}, path)
    cut = build_encoder(SMALL, weights=str(path))
    assert cut.provenance["tensors_sha256"] == whole.provenance["tensors_sha256"]


def test_counters_of_batchnorm_may_be_missing(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    slim = {k: v for k, v in state.items() if "num_batches_tracked" not in k}
    torch.save({"model": slim}, tmp_path / "slim.pth")
    found = build_encoder(SMALL, weights=tmp_path / "slim.pth")
    assert torch.equal(found(images()), build_encoder(SMALL, weights=checkpoint)(images()))


def test_provenance_names_file_digests_and_pooling(checkpoint):
    encoder = build_encoder(SMALL, weights=checkpoint, pool="area")
    assert encoder.provenance["name"] == SMALL
    assert encoder.provenance["file"] == "whole.pth"
    assert encoder.provenance["file_sha256"] == file_sha256(checkpoint)
    assert encoder.provenance["pool"] == "area"
    assert encoder.provenance["timm_version"] == timm.__version__
    assert len(encoder.provenance["tensors_sha256"]) == 64


def test_a_missing_tensor_is_refused_by_name(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    del state["conv_stem.weight"]
    torch.save(state, tmp_path / "hole.pth")
    with pytest.raises(WeightsError, match=r"lacks conv_stem\.weight"):
        build_encoder(SMALL, weights=tmp_path / "hole.pth")


def test_weights_of_another_model_are_refused_by_name(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "layer9.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"unknown layer9\.weight"):
        build_encoder(SMALL, weights=tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="does not hold the weights of resnet18"):
        build_encoder("resnet18", weights=checkpoint)


def test_tensors_of_another_size_are_refused_by_name(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["conv_stem.weight"] = state["conv_stem.weight"][:4]
    torch.save(state, tmp_path / "small.pth")
    with pytest.raises(WeightsError, match=r"other sizes of conv_stem\.weight"):
        build_encoder(SMALL, weights=tmp_path / "small.pth")


def test_another_digest_is_refused(checkpoint):
    assert build_encoder(SMALL, weights=checkpoint, sha256=file_sha256(checkpoint))
    with pytest.raises(WeightsError, match="was expected"):
        build_encoder(SMALL, weights=checkpoint, sha256="0" * 64)


def test_random_weights_are_said_loudly(caplog):
    with (
        pytest.warns(UserWarning, match="worth nothing on real images"),
        caplog.at_level(logging.WARNING),
    ):
        encoder = build_encoder(SMALL, weights="random", seed=7)
    assert "RANDOM" in caplog.text
    assert encoder.provenance["weights"] == "random, seed 7"


def test_encoder_that_goes_with_the_weights_is_taken_where_none_is_named():
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = build_encoder("auto", weights="random")
    assert encoder.provenance["name"] == DEFAULT_ENCODER


def test_random_weights_follow_the_seed_and_leave_the_random_state_alone():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    digests = [empty_encoder(SMALL, seed=s).provenance["tensors_sha256"] for s in (3, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert digests[0] == digests[1] != digests[2]


def test_calibrated_batchnorm_normalises_the_training_images():
    encoder = empty_encoder(SMALL)
    digest = encoder.provenance["tensors_sha256"]
    inputs: list[torch.Tensor] = []
    layer = encoder.trunk.model.bn1
    calibrate_batchnorm(encoder, images(8).split(4))
    hook = layer.register_forward_hook(lambda _m, x, _y: inputs.append(x[0]))
    encoder(images(8))
    hook.remove()
    assert torch.allclose(layer.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(layer.running_var, inputs[0].var((0, 2, 3)), rtol=0.02)
    assert encoder.provenance["batchnorm"] == "calibrated on 8 images"
    assert encoder.provenance["tensors_sha256"] != digest
    assert not any(module.training for module in encoder.modules())
    assert layer.momentum is not None


def test_calibration_needs_images_and_batchnorm():
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate_batchnorm(empty_encoder(SMALL), [])
    with pytest.raises(ValueError, match="no BatchNorm"):
        calibrate_batchnorm(empty_encoder("test_vit"), [images()])


@pytest.mark.parametrize("name", [SMALL, "test_vit", "test_resnet"])
def test_config_through_json_rebuilds_the_encoder(name):
    encoder = empty_encoder(name, pool="area", grid=7, seed=3)
    rebuilt = encoder_from_config(json.loads(json.dumps(encoder.config)))
    rebuilt.load_state_dict(encoder.state_dict())
    assert torch.equal(rebuilt(images()), encoder(images()))
    assert encoder(images()).shape == (2, encoder.out_channels, 7, 7)


def test_vision_transformer_gives_the_normed_tokens_of_its_last_block(tmp_path):
    model = timm.create_model("test_vit", img_size=224).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    encoder = build_encoder("test_vit", weights=tmp_path / "vit.pth")
    image = images()
    normalised = (image.expand(-1, 3, -1, -1) - 0.5) / 0.5
    with torch.no_grad():
        tokens = model.forward_features(normalised)[:, model.num_prefix_tokens :]
        found = encoder(image)
    assert torch.allclose(found, tokens.transpose(1, 2).unflatten(2, (14, 14)), atol=1e-5)


def test_blocks_of_a_vision_transformer_can_be_chosen():
    encoder = empty_encoder("test_vit", layers=[2, -1])
    assert encoder.stage_channels == (64, 64)
    assert encoder.trunk.config.indices == (2, 5)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="similar are"):
        empty_encoder("tf_efficientnet_b44")
    with pytest.raises(ValueError, match="'bilinear' or 'area'"):
        empty_encoder(SMALL, pool="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(2, 2, 8, 8\)"):
        empty_encoder(SMALL)(torch.zeros(2, 2, 8, 8))


def test_half_precision_stays_close(checkpoint):
    encoder = build_encoder(SMALL, weights=checkpoint)
    expected = encoder(images())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(images())
    pure = encoder.to(torch.bfloat16)(images())
    for half in (mixed, pure):
        assert F.cosine_similarity(half.float().flatten(), expected.flatten(), 0) > 0.99


def test_real_pretrained_trunk_loads_and_tells_images_apart(shared):
    path = shared / "weights" / "tf_efficientnetv2_b0.imagenet.stride16.safetensors"
    encoder = build_encoder("tf_efficientnetv2_b0", weights=path)
    assert encoder.stage_channels == (16, 32, 48, 112)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(1.39e6, rel=0.02)
    features = encoder(images())
    assert isinstance(encoder, FrozenEncoder)
    assert features.shape == (2, 208, 14, 14)
    assert features.std() > 0.01


def test_aligned_corners_are_kept_in_configuration_and_provenance() -> None:
    plain, aligned = (empty_encoder(SMALL, align_corners=value) for value in (False, True))
    assert "align_corners" not in plain.config
    assert aligned.provenance["align_corners"]  # features on disk are told apart by it
    rebuilt = encoder_from_config(json.loads(json.dumps(aligned.config)))
    rebuilt.load_state_dict(aligned.state_dict())
    features = aligned(images())
    torch.testing.assert_close(rebuilt(images()), features, rtol=0, atol=0)
    assert not torch.equal(plain(images()), features)
    rgb = images().expand(-1, 3, -1, -1)
    stages = aligned.trunk((rgb - aligned.mean) / aligned.std)
    size = (aligned.grid, aligned.grid)
    each = [F.interpolate(s, size, mode="bilinear", align_corners=True) for s in stages]
    torch.testing.assert_close(features, torch.cat(each, dim=1))
