from __future__ import annotations

import pytest
import torch

from mcmiad_monai.networks.jitter import FeatureJitter


def test_evaluation_is_the_identity():
    tokens = torch.randn(2, 9, 16)
    assert FeatureJitter().eval()(tokens) is tokens


def test_noise_has_the_scale_of_each_token():
    torch.manual_seed(0)
    scale, channels = 20.0, 4096
    tokens = torch.randn(1, 3, channels) * torch.tensor([1.0, 10.0, 100.0])[:, None]
    noise = FeatureJitter(scale)(tokens) - tokens
    expected = tokens.norm(dim=-1) * scale / channels
    assert torch.allclose(noise.std(dim=-1), expected, rtol=0.05)
    assert (noise.mean(dim=-1).abs() < 0.1 * expected).all()


def test_probability_picks_whole_samples():
    torch.manual_seed(0)
    tokens = torch.randn(2000, 2, 4)
    touched = (FeatureJitter(probability=0.3)(tokens) != tokens).flatten(1)
    assert (touched.all(dim=1) == touched.any(dim=1)).all()
    assert touched.any(dim=1).float().mean() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("jitter", [FeatureJitter(0.0), FeatureJitter(probability=0.0)])
def test_nothing_to_add_leaves_tokens_alone(jitter):
    tokens = torch.randn(2, 9, 16)
    assert torch.equal(jitter.train()(tokens), tokens)


def test_a_seed_repeats_the_noise():
    tokens, jitter = torch.randn(2, 9, 16), FeatureJitter()
    first, second = (torch.random.manual_seed(3) and jitter(tokens) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{"scale": -1.0}, {"probability": 1.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="jitter has scale"):
        FeatureJitter(**options)
