from __future__ import annotations

import torch
from torch import nn

from mcmiad_monai.networks.attention import MultiHeadAttention
from mcmiad_monai.networks.info import model_costs, part_cost


def test_two_operations_for_each_multiply_accumulate():
    cost = part_cost("linear", nn.Linear(10, 20), torch.zeros(1, 10))
    assert (cost.flops, cost.macs) == (400, 200)
    assert (cost.parameters, cost.trainable) == (220, 220)


def test_attention_products_are_counted():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = MultiHeadAttention(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, self.attention.project(x, x))

    cost = part_cost("attention", Block(), torch.zeros(1, 9, 16))
    assert cost.macs == 4 * 9 * 16 * 16 + 2 * 9 * 9 * 16


def test_counting_leaves_the_mode_of_a_module_alone():
    module = nn.Dropout().train()
    part_cost("dropout", module, torch.zeros(1, 2))
    assert module.training


def test_costs_of_the_default_network():
    encoder, head, total = model_costs()
    assert (encoder.part, head.part, total.part) == ("encoder", "head", "total")
    assert encoder.parameters == 3_635_984
    assert encoder.macs // 10**6 == 920
    assert head.parameters == 2_960_404
