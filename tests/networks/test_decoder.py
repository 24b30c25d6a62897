from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mcmiad_monai.networks.decoder import DecoderConfig, RecursiveMoEDecoder
from mcmiad_monai.networks.moe import balance_loss

OPTIONS: dict[str, Any] = {
    "grid": 5,
    "dim": 16,
    "heads": 4,
    "rounds": 3,
    "experts": 4,
    "hidden": 24,
    "neighbourhood": 3,
    "dropout": 0.0,
}


def decoder(**options: Any) -> RecursiveMoEDecoder:
    torch.manual_seed(0)
    built = RecursiveMoEDecoder(DecoderConfig(**{**OPTIONS, **options}))
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


# A second implementation of the decoder, in float64 and with loops over heads, tokens and experts.


def linear(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scaled = (x - mean) / np.sqrt(variance + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def reference_attention(
    weights: dict[str, np.ndarray], name: str, query: np.ndarray, key: np.ndarray, value: np.ndarray
) -> np.ndarray:
    grid, heads = OPTIONS["grid"], OPTIONS["heads"]
    q, k, v = (
        linear(weights, f"{name}.{part}", x)
        for part, x in (("query", query), ("key", key), ("value", value))
    )
    size = q.shape[1] // heads
    mixed = np.zeros_like(q)
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        for i in range(grid**2):
            seen = [
                j
                for j in range(grid**2)
                if max(abs(i // grid - j // grid), abs(i % grid - j % grid)) > 1
            ]
            scores = np.array([q[i, columns] @ k[j, columns] / math.sqrt(size) for j in seen])
            share = np.exp(scores - scores.max())
            share /= share.sum()
            mixed[i, columns] = sum(s * v[j, columns] for s, j in zip(share, seen, strict=True))
    return linear(weights, f"{name}.out", mixed)


def reference_experts(
    weights: dict[str, np.ndarray], name: str, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    output, importance = np.zeros_like(x), np.zeros(OPTIONS["experts"])
    for i, token in enumerate(x):
        logits = linear(weights, f"{name}.gate", token)
        importance += np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-logits)[:2]
        share = np.exp(logits[best]) / np.exp(logits[best]).sum()
        for expert, s in zip(best, share, strict=True):
            hidden = weights[f"{name}.up"][expert] @ token + weights[f"{name}.up_bias"][expert]
            down = weights[f"{name}.down"][expert] @ np.maximum(hidden, 0)
            output[i] += s * (down + weights[f"{name}.down_bias"][expert])
    return output, importance


def reference(model: RecursiveMoEDecoder, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """Outputs (B, N, D) and balance loss."""
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    grid, two = OPTIONS["grid"], model.options.ffn_per_round == 2
    places = [(i // grid, i % grid) for i in range(grid**2)]
    position = np.array(
        [np.r_[w["position.row"][row], w["position.column"][column]] for row, column in places]
    )
    outputs, totals = [], np.zeros((model.options.ffn_per_round, OPTIONS["experts"]))
    for sample in tokens:
        previous = sample
        for index in range(model.options.rounds):
            query = w["query"][0]
            seen = reference_attention(
                w, "input_attention", query + position, sample + position, sample
            )
            x = layer_norm(w, f"norms.{index}.input", query + seen)
            if two:
                mixed, used = reference_experts(w, "ffns.1", x)
                totals[1] += used
                x = layer_norm(w, f"norms.{index}.extra", x + mixed)
            seen = reference_attention(
                w, "round_attention", x + position, previous + position, previous
            )
            x = layer_norm(w, f"norms.{index}.round", x + seen)
            mixed, used = reference_experts(w, "ffns.0", x)
            totals[0] += used
            previous = layer_norm(w, f"norms.{index}.ffn", x + mixed)
        outputs.append(previous)
    balance = sum(total.var(ddof=1) / total.mean() ** 2 for total in totals)
    return np.stack(outputs), float(balance)


@pytest.mark.parametrize("ffn_per_round", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_an_independent_float64_implementation(training, ffn_per_round):
    model = decoder(ffn_per_round=ffn_per_round).train(training)
    tokens = torch.randn(2, 25, 16)
    expected, balance = reference(model, tokens.double().numpy())
    with torch.no_grad():
        output, importance = model(tokens)
    np.testing.assert_allclose(output.numpy(), expected, atol=2e-5)
    assert float(balance_loss(importance)) == pytest.approx(balance, rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_savings_change_neither_numbers_nor_gradients(training):
    results = []
    tokens = torch.randn(2, 25, 16)
    for savings in (True, False):
        model, x = decoder(savings=savings).train(training), tokens.clone().requires_grad_()
        output, importance = model(x)
        balance = balance_loss(importance)
        (output.pow(3).mean() + balance).backward()
        results.append([output, balance, x.grad, *(p.grad for p in model.parameters())])
    for saved, plain in zip(*results, strict=True):
        assert torch.allclose(saved, plain, rtol=1e-4, atol=1e-5)


def test_savings_compute_the_first_attention_once():
    for savings, expected in ((True, 1), (False, 3)):
        model, calls = decoder(savings=savings), []
        model.input_attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(torch.randn(1, 25, 16))
        assert len(calls) == expected


def test_in_one_round_a_token_does_not_depend_on_its_own_neighbourhood():
    model = decoder(rounds=1).eval()
    tokens = torch.randn(1, 25, 16)
    changed = tokens.clone()
    window = [row * 5 + column for row in (1, 2, 3) for column in (1, 2, 3)]
    changed[0, window] += 5 * torch.randn(9, 16)
    before, after = model(tokens)[0][0], model(changed)[0][0]
    assert torch.equal(before[12], after[12])
    assert (before[0] - after[0]).abs().max() > 1e-3


def test_rounds_share_all_weights_but_layer_norms():
    sizes = [sum(p.numel() for p in decoder(rounds=r).parameters()) for r in (1, 2, 5)]
    norms = 3 * 2 * OPTIONS["dim"]
    assert np.diff(sizes).tolist() == [norms, 3 * norms]


def test_position_embedding_is_uniform_and_the_mask_is_not_in_the_state():
    torch.manual_seed(0)
    model = RecursiveMoEDecoder(DecoderConfig(hidden=8))
    for part in (model.position.row, model.position.column):
        assert tuple(part.shape) == (14, 128)
        assert 0 <= part.min() < 0.05
        assert 0.95 < part.max() <= 1
    assert "allowed" not in model.state_dict()
    assert model.allowed.sum() < 196 * 196


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_half_precision(dtype):
    model, tokens = decoder().eval(), torch.randn(2, 25, 16)
    expected, _ = model(tokens)
    output, _ = model.to(dtype)(tokens.to(dtype))
    assert output.dtype == dtype
    similarity = torch.nn.functional.cosine_similarity(output.float(), expected, dim=-1)
    assert similarity.mean() > 0.98


def test_trains_under_autocast():
    model, tokens = decoder(dropout=0.1), torch.randn(2, 25, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output, importance = model(tokens)
    (output.float().square().mean() + balance_loss(importance)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [{"ffn_per_round": 3}, {"rounds": 0}, {"dim": 15, "heads": 3}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="the decoder has"):
        decoder(**options)
