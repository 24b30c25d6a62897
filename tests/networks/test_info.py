from __future__ import annotations

import pytest
import torch
from torch import nn

from mcmiad_monai.networks.attention import MultiHeadAttention
from mcmiad_monai.networks.info import part_cost, print_info


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


def test_table_of_the_default_network(capsys: pytest.CaptureFixture[str]):
    print_info()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["part", "encoder", "head", "total"]
    assert "3,635,984" in lines[1]
    assert "1,840" in lines[1]
    assert "2,960,404" in lines[2]
