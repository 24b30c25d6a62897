from __future__ import annotations

import hashlib
import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mcmiad_monai.modality import MODALITIES, normal_prompts
from mcmiad_monai.networks.encoder import build_encoder, encoder_from_config
from mcmiad_monai.networks.text_prior import (
    TextPrior,
    encode_hashing,
    encode_open_clip,
    resolve_text_prior,
)
from mcmiad_monai.networks.weights import WeightsError

TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random two-block CLIP under the name ``tiny-clip``, saved as a checkpoint."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(
        open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS)
    )
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    path = tmp_path / "clip.pt"
    torch.save(open_clip.create_model("tiny-clip", load_weights=False).state_dict(), path)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_hashing_gives_unit_rows_that_tell_prompts_and_modalities_apart():
    prior = encode_hashing(normal_prompts())
    assert prior.embeddings.shape == (15, 512)
    assert torch.allclose(prior.embeddings.norm(dim=1), torch.ones(15), atol=1e-6)
    similarity = prior.embeddings @ prior.embeddings.T
    assert (similarity - torch.eye(15)).max() < 0.9
    own = [similarity[i : i + 5, i : i + 5].sum() - 5 for i in range(0, 15, 5)]
    assert len(MODALITIES) == 3
    assert sum(own) / 60 > (similarity.sum() - 15 - sum(own)) / 150


def test_hashing_is_the_same_everywhere():
    """The stored numbers of a prior must not depend on the machine that makes it."""
    prior = encode_hashing(["healthy brain"], dim=4, seed=0)
    assert prior.embeddings[0].tolist() == pytest.approx(EXPECTED, abs=1e-6)
    assert torch.equal(prior.embeddings, encode_hashing(["healthy brain"], dim=4).embeddings)
    other = encode_hashing(["healthy brain"], dim=4, seed=1)
    assert not torch.allclose(prior.embeddings, other.embeddings)


EXPECTED = [-0.2612304, 0.9312235, 0.0097742, 0.2539407]


def test_hashing_says_that_it_is_not_clip():
    assert "not CLIP" in encode_hashing(["a brain"]).encoder


def test_a_saved_prior_comes_back_whole(tmp_path):
    prior = encode_hashing(normal_prompts())
    prior.save(tmp_path / "new" / "prior.safetensors")
    loaded = TextPrior.load(tmp_path / "new" / "prior.safetensors")
    assert torch.equal(loaded.embeddings, prior.embeddings)
    assert loaded.prompts == normal_prompts()
    assert loaded.provenance == prior.provenance
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["prior.safetensors"]


def test_provenance_is_fit_for_json_and_changes_with_the_embeddings():
    first, second = (encode_hashing(["a brain"], seed=s).provenance for s in (0, 1))
    assert json.loads(json.dumps(first)) == first
    assert first["embeddings_sha256"] != second["embeddings_sha256"]


def test_clip_rows_are_its_normalised_text_features(tiny_clip):
    prompts = normal_prompts()[:3]
    prior = encode_open_clip(prompts, model="tiny-clip", pretrained=str(tiny_clip))
    clip = open_clip.create_model("tiny-clip", pretrained=str(tiny_clip)).eval()
    with torch.no_grad():
        features = clip.encode_text(open_clip.get_tokenizer("tiny-clip")(list(prompts)))
    expected = features / features.norm(dim=1, keepdim=True)
    assert torch.allclose(prior.embeddings, expected, atol=1e-6)
    assert hashlib.sha256(tiny_clip.read_bytes()).hexdigest() in prior.weights
    assert prior.encoder == "OpenCLIP tiny-clip text tower"


def test_clip_leaves_the_random_state_alone(tiny_clip):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    encode_open_clip(["a brain"], model="tiny-clip", pretrained=str(tiny_clip))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_source_names_model_and_checkpoint(tiny_clip):
    found = resolve_text_prior(f"open_clip:tiny-clip/{tiny_clip}", ["a brain"])
    expected = encode_open_clip(["a brain"], model="tiny-clip", pretrained=str(tiny_clip))
    assert torch.equal(found.embeddings, expected.embeddings)


def test_source_can_be_hashing_or_a_file(tmp_path):
    prior = resolve_text_prior("hashing", ["a brain"])
    prior.save(tmp_path / "p.safetensors")
    loaded = resolve_text_prior(str(tmp_path / "p.safetensors"), ["other words"])
    assert loaded.prompts == ("a brain",)


@pytest.mark.usefixtures("offline")
def test_offline_clip_names_what_to_bring_and_the_way_without():
    with pytest.raises(WeightsError) as caught:
        resolve_text_prior("open_clip", ["a brain"])
    for word in ("ViT-B-16", "huggingface.co/timm/vit_base_patch16_clip_224.openai", "hashing"):
        assert word in str(caught.value)


def test_hub_that_does_not_answer_is_asked_once(monkeypatch):
    def no_answer():
        raise OSError("no answer")

    def download(_):
        raise AssertionError("OpenCLIP's own client tries again and again")

    monkeypatch.setattr("mcmiad_monai.networks.clip.cached_file", lambda *_: None)
    monkeypatch.setattr("mcmiad_monai.networks.clip.require_hub", no_answer)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", download)
    with pytest.raises(WeightsError, match=r"no answer.*--text-prior hashing"):
        resolve_text_prior("open_clip", ["a brain"])


def test_unknown_model_and_tag_are_refused():
    with pytest.raises(ValueError, match="does not know the model"):
        encode_open_clip(["a brain"], model="ViT-X")
    with pytest.raises(WeightsError, match="openai"):
        encode_open_clip(["a brain"], pretrained="nobody")


def test_weights_of_another_clip_are_refused(tiny_clip):
    with pytest.raises(WeightsError, match="does not fit"):
        encode_open_clip(["a brain"], model="ViT-B-32", pretrained=str(tiny_clip))


def test_files_that_are_no_prior_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="there is no text prior"):
        TextPrior.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("bad", "other"):
        with pytest.raises(WeightsError, match="is not a text prior"):
            TextPrior.load(tmp_path / f"{name}.safetensors")


def test_rows_that_are_not_normalised_or_do_not_match_are_refused():
    with pytest.raises(ValueError, match="L2-normalised"):
        TextPrior(torch.full((1, 4), 3.0), ("a",), "x", "y")
    with pytest.raises(ValueError, match="one row for each prompt"):
        TextPrior(torch.eye(2), ("a",), "x", "y")


@pytest.mark.parametrize("prompts", [[], [" "], "one string"])
def test_useless_prompts_are_refused(prompts):
    with pytest.raises(ValueError, match="list of sentences"):
        encode_hashing(prompts)


def test_visual_tower_of_clip_is_an_encoder(tiny_clip):
    encoder = build_encoder("open_clip:tiny-clip", weights=tiny_clip)
    clip = open_clip.create_model("tiny-clip", pretrained=str(tiny_clip)).eval()
    image = torch.rand(2, 3, 224, 224)
    mean, std = (
        torch.tensor(clip.visual.preprocess_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std")
    )
    with torch.no_grad():
        whole = clip.visual.forward_intermediates(
            (image - mean) / std, normalize_intermediates=True, intermediates_only=True
        )["image_intermediates"]
        assert torch.allclose(encoder(image), whole[-1], atol=1e-5)
    assert encoder.stage_channels == (32,)


def test_blocks_of_a_visual_tower_are_concatenated_or_averaged(tiny_clip):
    first, last = (
        build_encoder("open_clip:tiny-clip", weights=tiny_clip, layers=[i]) for i in (0, 1)
    )
    image = torch.rand(2, 1, 224, 224)
    options = {"weights": tiny_clip, "layers": [0, 1]}
    both = build_encoder("open_clip:tiny-clip", **options)
    mean = build_encoder("open_clip:tiny-clip", merge="average", **options)
    assert torch.equal(both(image), torch.cat([first(image), last(image)], dim=1))
    assert torch.allclose(mean(image), (first(image) + last(image)) / 2, atol=1e-6)
    assert (both.stage_channels, mean.stage_channels) == ((32, 32), (32,))


def test_visual_tower_of_other_images_has_its_positions_resampled(tmp_path, monkeypatch, tiny_clip):
    """Published towers of 240 or 336 pixels also see images of 224."""
    monkeypatch.setitem(TINY_CLIP["vision_cfg"], "image_size", 96)
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    clip = open_clip.create_model("tiny-clip", load_weights=False)
    torch.save(clip.state_dict(), tiny_clip)
    encoder = build_encoder("open_clip:tiny-clip", weights=tiny_clip)
    rebuilt = encoder_from_config(json.loads(json.dumps(encoder.config)))
    rebuilt.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 1, 224, 224)
    assert torch.equal(rebuilt(image), encoder(image))
    expected = open_clip.create_model(
        "tiny-clip", pretrained=str(tiny_clip), force_image_size=224
    ).visual.positional_embedding
    assert torch.equal(encoder.trunk.model.positional_embedding, expected)


def test_visual_tower_is_rebuilt_without_its_name(tiny_clip, monkeypatch):
    encoder = build_encoder("open_clip:tiny-clip", weights=tiny_clip, layers=[0])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    rebuilt = encoder_from_config(json.loads(json.dumps(encoder.config)))
    rebuilt.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 1, 224, 224)
    assert torch.equal(rebuilt(image), encoder(image))
