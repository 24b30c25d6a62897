from __future__ import annotations

import pytest
import torch

from mcmiad_monai.networks.moe import MixtureOfExperts, balance_loss


def mixture(**options: object) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(16, **{"hidden": 32, "dropout": 0.0, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_forms_of_dispatch_agree_in_output_and_gradients(top_k):
    tokens = torch.randn(3, 25, 16)
    results = []
    for dispatch in ("grouped", "ragged", "routed", "dense"):
        moe, x = mixture(top_k=top_k, dispatch=dispatch), tokens.clone().requires_grad_()
        for bias in (moe.up_bias, moe.down_bias):
            torch.nn.init.normal_(bias, std=0.1)
        output, importance = moe(x)
        (output.square().sum() + importance.square().sum()).backward()
        results.append([output, importance, x.grad, *(p.grad for p in moe.parameters())])
    for other in results[1:]:
        for grouped, found in zip(results[0], other, strict=True):
            assert torch.allclose(grouped, found, rtol=1e-5, atol=1e-4)


def test_weights_that_were_split_before_serve_every_call():
    tokens = torch.randn(2, 9, 16)
    results = []
    for before in (True, False):
        moe = mixture()
        experts = moe.split() if before else None
        first, _ = moe(tokens, experts)
        second, _ = moe(first, experts)
        second.square().sum().backward()
        results.append([second, *(p.grad for p in moe.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert {own.dtype for expert in moe.split().each for own in expert} == {torch.bfloat16}
    with torch.no_grad():
        assert not any(own.requires_grad for expert in moe.split().each for own in expert)


@pytest.mark.parametrize("dispatch", ["grouped", "ragged"])
def test_unchosen_experts_do_not_matter(dispatch):
    moe, tokens = mixture(top_k=1, dispatch=dispatch), torch.randn(1, 9, 16)
    with torch.no_grad():
        moe.gate.bias.copy_(torch.tensor([0.0, 100.0, 0.0, 0.0]))
    before, _ = moe(tokens)
    with torch.no_grad():
        moe.up[[0, 2, 3]] = torch.nan
    after, _ = moe(tokens)
    assert torch.equal(before, after)


def test_weights_are_the_softmax_over_the_chosen_experts_only():
    moe, tokens = mixture(), torch.zeros(1, 1, 16)
    with torch.no_grad():
        moe.gate.bias.copy_(torch.tensor([2.0, 1.0, 0.5, -1.0]))
        moe.down_bias.copy_(torch.arange(4.0)[:, None].expand(4, 16))  # expert e answers e
    output, _ = moe(tokens)
    second = 1 / (1 + torch.e)
    assert torch.allclose(output, torch.full_like(output, second))


def test_importance_sums_gate_probabilities_over_all_tokens():
    moe, tokens = mixture(), torch.randn(2, 9, 16)
    _, importance = moe(tokens)
    assert importance.sum().item() == pytest.approx(18, rel=1e-5)
    assert torch.allclose(importance, moe.gate(tokens).softmax(-1).sum((0, 1)), atol=1e-5)


def test_balance_loss_is_the_squared_coefficient_of_variation():
    # mean 2, unbiased variance ((1-2)² + (3-2)²) / 1 = 2, so 2 / 4
    assert balance_loss(torch.tensor([1.0, 3.0])) == pytest.approx(0.5)
    assert balance_loss(torch.full((4,), 7.0)) == 0
    assert balance_loss(torch.tensor([5.0])) == 0


def test_experts_start_from_xavier_uniform_and_zero_bias():
    moe = MixtureOfExperts(64, hidden=192)
    bound = (6 / (64 + 192)) ** 0.5
    for weight in (moe.up, moe.down):
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not moe.up_bias.any()
    assert not moe.down_bias.any()


def test_dropout_acts_in_training_only():
    moe, tokens = mixture(dropout=0.5), torch.randn(1, 9, 16)
    assert not torch.equal(moe(tokens)[0], moe(tokens)[0])
    moe.eval()
    assert torch.equal(moe(tokens)[0], moe(tokens)[0])


@pytest.mark.parametrize("top_k", [0, 5])
def test_an_impossible_choice_of_experts_is_refused(top_k):
    with pytest.raises(ValueError, match="between 1 and the 4 experts"):
        mixture(top_k=top_k)


@pytest.mark.parametrize("dispatch", ["grouped", "routed", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_half_precision(dtype, dispatch):
    moe, tokens = mixture(dispatch=dispatch), torch.randn(1, 9, 16)
    expected, _ = moe(tokens)
    output, _ = moe.to(dtype)(tokens.to(dtype))
    assert output.dtype == dtype
    assert (
        torch.nn.functional.cosine_similarity(output.float().flatten(), expected.flatten(), 0)
        > 0.99
    )


@pytest.mark.parametrize(
    ("tokens", "dtype", "hidden", "gpu", "form"),
    [
        (2**13, torch.float32, 32, (9, 0), "dense"),
        (2**13, torch.bfloat16, 32, (9, 0), "dense"),
        (2**14, torch.float32, 32, (9, 0), "grouped"),
        (2**14, torch.bfloat16, 32, (9, 0), "ragged"),
        (2**14, torch.bfloat16, 28, (9, 0), "grouped"),
        (2**14, torch.bfloat16, 32, (7, 5), "grouped"),
    ],
)
def test_form_on_a_gpu(monkeypatch, tokens, dtype, hidden, *, gpu, form):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: gpu)
    monkeypatch.setattr("mcmiad_monai.networks.moe.grouped_mm", lambda *_: None)
    moe = mixture(hidden=hidden)
    assert moe._form(tokens, torch.device("cuda"), dtype) == form
    assert moe._form(tokens, torch.device("cpu"), dtype) == "grouped"
