from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mcmiad_monai.networks.attention import MultiHeadAttention
from mcmiad_monai.networks.fusion import CrossModalFusion


@pytest.fixture
def embeddings() -> torch.Tensor:
    return F.normalize(torch.randn(15, 32, generator=torch.Generator().manual_seed(0)), dim=1)


def test_full_cross_attention_to_one_key_gives_every_token_the_same_vector():
    """Why the "mean" mode needs no query and key projections: they have no say and no gradient."""
    attention, tokens = MultiHeadAttention(16, 4), torch.randn(2, 9, 16)
    key = torch.randn(2, 1, 16)
    output = attention(tokens, attention.project(key, key))
    assert torch.allclose(output, output[:, :1].expand_as(output), atol=1e-6)
    output.square().sum().backward()
    for dead in (attention.query.weight, attention.key.weight):
        assert dead.grad is not None
        assert dead.grad.abs().max() < 1e-5


def test_mean_mode_adds_the_projected_mean_to_every_token(embeddings):
    fusion, tokens = CrossModalFusion(embeddings, dim=16, alpha=0.5), torch.randn(2, 9, 16)
    added = fusion(tokens) - tokens
    expected = 0.5 * embeddings.mean(dim=0) @ fusion.project.weight.T
    assert torch.allclose(added, expected.expand_as(added), atol=1e-6)


def test_mean_mode_has_one_projection_and_nothing_else(embeddings):
    fusion = CrossModalFusion(embeddings, dim=16)
    assert [name for name, _ in fusion.named_parameters()] == ["project.weight"]


def test_prompts_mode_tells_tokens_apart(embeddings):
    fusion = CrossModalFusion(embeddings, dim=16, mode="prompts")
    added = fusion(10 * torch.randn(1, 9, 16))
    assert (added - added[:, :1]).abs().max() > 1e-3


def test_prompts_mode_gives_gradients_to_all_its_weights(embeddings):
    fusion = CrossModalFusion(embeddings, dim=16, mode="prompts")
    fusion(torch.randn(1, 9, 16)).square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-7, name


def test_a_token_can_turn_to_the_null_key(embeddings):
    fusion = CrossModalFusion(embeddings, dim=16, heads=1, mode="prompts")
    with torch.no_grad():
        fusion.query.weight.copy_(torch.eye(16))
        fusion.out.weight.copy_(torch.eye(16))
        for layer in (fusion.query, fusion.out):
            layer.bias.zero_()
    tokens = 1000 * fusion.null_key.detach().expand(1, 1, -1)
    assert torch.allclose(fusion(tokens) - tokens, fusion.null_key, atol=1e-2)


@pytest.mark.parametrize("mode", ["mean", "prompts"])
def test_without_text_the_embeddings_are_zeros_of_the_same_size_and_nothing_else(embeddings, mode):
    with_text = CrossModalFusion(embeddings, dim=16, mode=mode)
    without = CrossModalFusion(embeddings, dim=16, mode=mode, use_text_fusion=False)
    shapes = [{k: v.shape for k, v in f.state_dict().items()} for f in (with_text, without)]
    assert shapes[0] == shapes[1]
    assert not without.embeddings.any()


def test_without_text_the_mean_mode_leaves_tokens_as_they_are(embeddings):
    fusion = CrossModalFusion(embeddings, dim=16, use_text_fusion=False)
    tokens = torch.randn(2, 9, 16)
    assert torch.equal(fusion(tokens), tokens)


def test_unknown_mode_and_wrong_rank_are_refused(embeddings):
    with pytest.raises(ValueError, match="choose 'mean' or 'prompts'"):
        CrossModalFusion(embeddings, mode="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="D_text"):
        CrossModalFusion(embeddings[0])
