"""Dropout with cheap random numbers keeps the promises of PyTorch's."""

from __future__ import annotations

import pytest
import torch

from mcmiad_monai.networks.dropout import Dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_the_share_and_keeps_the_mean(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = Dropout(probability)(torch.ones(1001, 999, dtype=dtype)).float()
    assert float((out == 0).float().mean()) == pytest.approx(probability, abs=2e-3)
    assert out.unique().numel() == 2
    assert float(out.max()) == pytest.approx(1 / (1 - probability), rel=5e-3)
    # neighbours share a word of the generator, and must not share their fate
    kept = (out != 0).float().flatten()
    for step in (1, 2, 3, 4):
        together = float((kept[step:] * kept[:-step]).mean())
        assert together == pytest.approx((1 - probability) ** 2, abs=3e-3)


def test_is_repeated_by_a_seed_and_gone_in_evaluation() -> None:
    layer, values = Dropout(0.3), torch.rand(7, 5)
    torch.manual_seed(3)
    first = layer(values)
    torch.manual_seed(3)
    assert torch.equal(first, layer(values))
    assert not torch.equal(first, layer(values))
    assert torch.equal(layer.eval()(values), values)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_all(probability: float) -> None:
    values = torch.rand(5, 3)
    assert torch.equal(Dropout(probability)(values), values * (1 - probability))


def test_gradient_goes_where_the_value_went() -> None:
    values = torch.rand(64, 9).add(0.1).requires_grad_()
    out = Dropout(0.4)(values)
    out.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, out.detach() / values.detach())
