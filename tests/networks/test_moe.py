from __future__ import annotations

from types import SimpleNamespace

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
    for dispatch in ("grouped", "dense"):
        moe, x = mixture(top_k=top_k, dispatch=dispatch), tokens.clone().requires_grad_()
        for bias in (moe.up_bias, moe.down_bias):
            torch.nn.init.normal_(bias, std=0.1)
        output, importance = moe(x)
        (output.square().sum() + importance.square().sum()).backward()
        results.append([output, importance, x.grad, *(p.grad for p in moe.parameters())])
    for other in results[1:]:
        for grouped, found in zip(results[0], other, strict=True):
            assert torch.allclose(grouped, found, rtol=1e-5, atol=1e-4)


def test_unchosen_experts_do_not_matter():
    moe, tokens = mixture(top_k=1), torch.randn(1, 9, 16)
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


@pytest.mark.parametrize("dispatch", ["grouped", "dense"])
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


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_mixture_gives_the_same_numbers_for_any_number_of_tokens(training):
    moe, example = mixture().train(training), torch.randn(2, 9, 16)
    slices = torch.export.Dim("slices", min=1)
    program = torch.export.export(moe, (example,), dynamic_shapes=({0: slices},), strict=False)
    for count in (1, 5):
        tokens = torch.randn(count, 9, 16)
        for found, expected in zip(program.module()(tokens), moe(tokens), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("tokens", "gpu", "dense"), [(2**13, 1, 1), (2**14, 1, 0), (1, 0, 0)])
def test_all_experts_are_computed_for_few_tokens_on_a_gpu(tokens, gpu, dense):
    moe = mixture()
    del moe.up
    moe.up = SimpleNamespace(device=torch.device("cuda" if gpu else "cpu"))
    assert moe.is_dense(tokens) == dense


def test_a_compiled_mixture_has_fixed_shapes():
    moe, tokens = mixture(), torch.randn(3, 9, 16)
    compiled = torch.compile(moe, backend="eager", fullgraph=True)
    for found, expected in zip(compiled(tokens), moe(tokens), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
