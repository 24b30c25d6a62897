"""Patch tokens of chosen blocks of a vision transformer; OpenCLIP's are beside its other tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_heads import small_detector

from mcmiad_monai.data.cache_key import cache_key
from mcmiad_monai.networks.encoder import build_encoder, empty_encoder, encoder_from_config
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.runtime.export import export_model
from mcmiad_monai.training.method import preset

VIT = "test_vit"
BLOCKS = [1, 2, 4]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights of the whole transformer, for images of 160 pixels."""
    torch.manual_seed(2)
    torch.save(timm.create_model(VIT).state_dict(), tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


def images() -> torch.Tensor:
    return torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))


def by_hand(checkpoint: Path, blocks: list[int]) -> list[torch.Tensor]:
    """Maps of blocks, of the whole model, by timm's own interface at the size of the images."""
    model = timm.create_model(VIT, dynamic_img_size=True).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    rgb = (images().expand(-1, 3, -1, -1) - 0.5) / 0.5
    with torch.no_grad():
        return model.forward_intermediates(rgb, indices=blocks, norm=True, intermediates_only=True)  # type: ignore[no-any-return]


def test_tokens_are_those_of_timms_blocks_counted_from_0(checkpoint: Path) -> None:
    encoder = build_encoder(VIT, weights=checkpoint, layers=BLOCKS)
    maps = by_hand(checkpoint, BLOCKS)
    torch.testing.assert_close(encoder(images()), torch.cat(maps, dim=1), rtol=0, atol=1e-3)
    assert encoder.stage_channels == (64, 64, 64)
    assert encoder.member_channels == (192,)
    assert len(encoder.trunk.model.blocks) == 5  # the last block is not needed


def test_average_is_that_of_the_maps(checkpoint: Path) -> None:
    encoder = build_encoder(VIT, weights=checkpoint, layers=BLOCKS, merge="average", pool="area")
    each = [build_encoder(VIT, weights=checkpoint, layers=[b], pool="area") for b in BLOCKS]
    expected = torch.stack([one(images()) for one in each]).mean(0)
    torch.testing.assert_close(encoder(images()), expected, rtol=0, atol=1e-5)
    assert encoder.stage_channels == (64,)


def test_order_of_layers_does_not_matter() -> None:
    assert empty_encoder(VIT, layers=[-2, 1]).config == empty_encoder(VIT, layers=[1, 4]).config


def test_larger_patches_and_other_grids_come_to_the_grid_that_is_asked_for() -> None:
    name = "vit_base_patch32_224"  # 7 × 7 tokens
    for grid in (7, 14):
        encoder = empty_encoder(name, layers=[0], grid=grid, pool="area")
        assert encoder(images()).shape == (2, 768, grid, grid)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([2, 6], r"layers is \[2, 6\], and test_vit has 6 blocks.*from 0 to 5"),
        ([-7], r"has 6 blocks"),
        ([], r"layers is \[\]"),
        ([5, -1], r"different blocks"),
        (4, r"layers is 4, .*Give a list"),
        ([1.5], r"Give a list"),
        ("12", r"Give a list"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        empty_encoder(VIT, layers=layers)


def test_layers_of_a_pyramid_are_refused() -> None:
    for options in ({"layers": [1]}, {"merge": "average"}):
        with pytest.raises(ValueError, match=r"test_resnet has stages of several sizes.*Leave"):
            empty_encoder("test_resnet", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'concatenate' or 'average'"):
        empty_encoder(VIT, merge="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("merge", ["concatenate", "average"])
def test_package_and_export_give_the_same_heatmaps(merge: Any, tmp_path: Path) -> None:
    encoder = empty_encoder(VIT, layers=[1, 3], merge=merge, grid=7, pool="area")
    detector = small_detector(encoder)
    save_package(tmp_path / "model.pt", detector)
    loaded = load_package(tmp_path / "model.pt")
    assert torch.equal(loaded(images()), detector(images()))
    assert loaded.encoder.provenance["layers"] == [1, 3]
    assert loaded.encoder.provenance["merge"] == merge
    path = export_model(loaded, tmp_path / "model.ts")
    torch.testing.assert_close(torch.jit.load(str(path))(images()), detector(images()))


def test_package_from_before_there_was_a_choice_is_read() -> None:
    encoder = empty_encoder(VIT, layers=[0, 5])
    config = json.loads(json.dumps(encoder.config))
    del config["trunk"]["merge"]
    rebuilt = encoder_from_config(config)
    rebuilt.load_state_dict(encoder.state_dict())
    assert torch.equal(rebuilt(images()), encoder(images()))


def test_kept_features_of_other_layers_are_not_taken_for_these() -> None:
    """The tensors of the cut model are the same: its last block is."""
    options = [{"layers": [1, 5]}, {"layers": [2, 5]}, {"layers": [2, 5], "merge": "average"}]
    provenances = [empty_encoder(VIT, **one).provenance for one in options]  # type: ignore[arg-type]
    assert len({p["tensors_sha256"] for p in provenances}) == 1
    assert len({cache_key([], lambda case: case, {}, p) for p in provenances}) == 3


def test_method_hands_them_on() -> None:
    method = preset(encoder_name=VIT, weights="random", layers=[1, 3], merge="average")
    assert method.layers == (1, 3)
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = method.build_encoder()
    assert encoder.trunk.config.indices == (1, 3)
    assert encoder.stage_channels == (64,)


def test_real_transformer_gives_its_middle_blocks(shared: Path) -> None:
    """Weights in half precision, under DINOv2's names, for 37 × 37 patches."""
    file = shared / "weights" / "vit_small_patch14_dinov2_layout.fp16.safetensors"
    encoder = build_encoder(
        "vit_small_patch14_dinov2", weights=file, layers=[4, 6, 8, 11], pool="area"
    )
    with torch.no_grad():
        (stage, *_) = encoder.trunk(images()[:1].expand(-1, 3, -1, -1))
        features = encoder(images()[:1])
    assert stage.shape == (1, 384, 16, 16)
    assert features.shape == (1, 1536, 14, 14)
    assert features.std() > 0.1
