from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mcmiad_monai.networks.head import HeadOutput
from mcmiad_monai.networks.loss import ReconstructionLoss


def output(balance: float = 0.0) -> HeadOutput:
    torch.manual_seed(0)
    return HeadOutput(torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4), torch.tensor(balance))


def test_default_is_mse_and_a_hundredth_of_the_balance():
    out = output(balance=3.0)
    expected = F.mse_loss(out.target, out.reconstruction) + 0.03
    assert torch.allclose(ReconstructionLoss()(out), expected)


def test_accepts_the_label_that_a_trainer_passes():
    assert ReconstructionLoss()(output(), None) == ReconstructionLoss()(output(), torch.zeros(2))


def test_cosine_term_is_the_mean_cosine_distance():
    out = output()
    extra = ReconstructionLoss(cosine_weight=2.0)(out) - ReconstructionLoss()(out)
    expected = 2 * (1 - F.cosine_similarity(out.target, out.reconstruction, dim=1)).mean()
    assert extra.item() == pytest.approx(expected.item(), rel=1e-5)


def test_equal_stage_weights_are_the_plain_mse():
    weighted = ReconstructionLoss(stage_weights=(3, 3), stage_channels=(2, 4))
    assert torch.allclose(weighted(output()), ReconstructionLoss()(output()))


def test_stage_weights_pick_the_stages():
    out = output()
    last = ReconstructionLoss(stage_weights=(0, 1), stage_channels=(2, 4))(out)
    assert torch.allclose(last, F.mse_loss(out.target[:, 2:], out.reconstruction[:, 2:]))


def test_perfect_reconstruction_costs_nothing():
    out = output()
    perfect = HeadOutput(out.target, out.target, torch.zeros(()))
    assert ReconstructionLoss(cosine_weight=1.0)(perfect).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_reconstruction_gives_a_float32_loss_with_gradients():
    out = output()
    restored = out.reconstruction.bfloat16().requires_grad_()
    loss = ReconstructionLoss()(HeadOutput(out.target, restored, out.balance_loss))
    loss.backward()
    assert loss.dtype == torch.float32
    assert restored.grad is not None


@pytest.mark.parametrize(
    "options",
    [
        {"stage_weights": (1, 1)},
        {"stage_weights": (1, 1), "stage_channels": (6,)},
        {"stage_weights": (0, 0), "stage_channels": (2, 4)},
        {"stage_weights": (-1, 2), "stage_channels": (2, 4)},
    ],
)
def test_stage_weights_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match="stage_weights"):
        ReconstructionLoss(**options)
