from __future__ import annotations

import pytest
import torch

from mcmiad_monai.networks.attention import (
    MultiHeadAttention,
    attend,
    attention_weights,
    neighbourhood_blocked,
)


def test_a_token_sees_no_key_of_its_window_and_every_other_key():
    blocked = neighbourhood_blocked(14, 7)
    for query in range(196):
        for key in range(196):
            rows, columns = abs(query // 14 - key // 14), abs(query % 14 - key % 14)
            assert blocked[query, key] == (max(rows, columns) <= 3)


def test_between_16_and_49_of_196_keys_are_blocked():
    counts = neighbourhood_blocked(14, 7).sum(dim=1)
    assert (counts.min(), counts.max()) == (16, 49)
    assert counts[0] == 16  # a corner
    assert counts[7 * 14 + 7] == 49  # the centre


def test_no_window_blocks_nothing():
    assert not neighbourhood_blocked(14, 0).any()


@pytest.mark.parametrize("size", [4, 15, 27])
def test_a_window_without_centre_or_without_keys_left_is_refused(size):
    with pytest.raises(ValueError, match="neighbourhood"):
        neighbourhood_blocked(14, size)


@pytest.mark.parametrize(("grid", "size"), [(14, 13), (5, 3), (4, 3)])
def test_the_largest_allowed_window_leaves_each_token_a_key(grid, size):
    assert not neighbourhood_blocked(grid, size).all(dim=1).any()


def test_blocked_keys_get_no_weight():
    blocked = neighbourhood_blocked(6, 3)
    query, key = torch.randn(2, 4, 36, 8), torch.randn(2, 4, 36, 8)
    weights = attention_weights(query, key, ~blocked)
    assert (weights[..., blocked] == 0).all()
    assert (weights[..., ~blocked] > 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 36), atol=1e-6)


def test_fused_and_written_out_forms_agree():
    query, key, value = (torch.randn(2, 4, 36, 8) for _ in range(3))
    allowed = ~neighbourhood_blocked(6, 3)
    expected = attention_weights(query, key, allowed) @ value
    assert torch.allclose(attend(query, key, value, allowed), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_the_cpu_is_close_to_float32(dtype):
    query, key, value = (torch.randn(2, 4, 36, 8) for _ in range(3))
    allowed = ~neighbourhood_blocked(6, 3)
    half = attend(query.to(dtype), key.to(dtype), value.to(dtype), allowed)
    assert half.dtype == dtype
    assert torch.allclose(half.float(), attend(query, key, value, allowed), atol=0.05)


def test_agrees_with_torch_multi_head_attention():
    ours, theirs = MultiHeadAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, key, value = (torch.randn(3, 25, 16) for _ in range(3))
    blocked = neighbourhood_blocked(5, 3)
    expected, _ = theirs(query, key, value, attn_mask=blocked)
    assert torch.allclose(ours(query, ours.project(key, value), ~blocked), expected, atol=1e-5)


def test_one_query_serves_a_whole_batch():
    attention = MultiHeadAttention(16, 4)
    query, tokens = torch.randn(1, 9, 16), torch.randn(3, 9, 16)
    memory = attention.project(tokens, tokens)
    assert torch.allclose(
        attention(query, memory), attention(query.expand(3, -1, -1), memory), atol=1e-6
    )


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="divide"):
        MultiHeadAttention(16, 5)
