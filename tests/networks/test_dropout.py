"""ReLU and dropout in one step keep the promises of PyTorch's two."""

from __future__ import annotations

import pytest
import torch

from mcmiad_monai.networks.dropout import DroppingReLU


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_the_share_and_keeps_the_mean(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = DroppingReLU(probability)(torch.ones(1001, 999, dtype=dtype)).float()
    assert float((out == 0).float().mean()) == pytest.approx(probability, abs=2e-3)
    assert out.unique().numel() == 2
    assert float(out.max()) == pytest.approx(1 / (1 - probability), rel=5e-3)
    # neighbours share a word of the generator, and must not share their fate
    kept = (out != 0).float().flatten()
    for step in (1, 2, 3, 4):
        together = float((kept[step:] * kept[:-step]).mean())
        assert together == pytest.approx((1 - probability) ** 2, abs=3e-3)


def test_is_repeated_by_a_seed_and_gone_in_evaluation() -> None:
    layer, values = DroppingReLU(0.3), torch.rand(7, 5)
    torch.manual_seed(3)
    first = layer(values)
    torch.manual_seed(3)
    assert torch.equal(first, layer(values))
    assert not torch.equal(first, layer(values))
    assert torch.equal(layer.eval()(values), values)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_all(probability: float) -> None:
    values = torch.rand(5, 3)
    assert torch.equal(DroppingReLU(probability)(values), values * (1 - probability))


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_refuses_what_is_no_probability(probability: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        DroppingReLU(probability)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_the_two_steps(dtype: torch.dtype) -> None:
    values = torch.randn(64, 9).to(dtype).requires_grad_()
    weight = torch.randn(64, 9).to(dtype)
    out = DroppingReLU(0.4)(values)
    out.backward(weight)
    assert values.grad is not None
    scale = (out != 0).to(dtype) / 0.6  # what was kept
    assert 0 < int((out == 0).sum() - (values <= 0).sum()) < (values > 0).sum()
    torch.testing.assert_close(out.detach(), values.detach().relu() * scale)
    torch.testing.assert_close(values.grad, weight * scale)


def test_numbers_of_other_widths_take_the_two_steps() -> None:
    values = torch.randn(64, 9, dtype=torch.float64)
    out = DroppingReLU(0.4)(values)
    kept = out != 0
    torch.testing.assert_close(out[kept], values.relu()[kept] / 0.6)
    assert bool((out[values <= 0] == 0).all())


def test_a_compiled_graph_takes_the_two_steps() -> None:
    values = torch.rand(64, 9).add(0.1).requires_grad_()
    out = torch.compile(DroppingReLU(0.4), backend="aot_eager", fullgraph=True)(values)
    out.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, (out != 0).float() / 0.6)
