from __future__ import annotations

import pytest
import torch
from small_heads import small_detector
from torch import nn

from mcmiad_monai.networks.attention import MultiHeadAttention
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.networks.info import describe, model_costs, part_cost
from mcmiad_monai.networks.memory import MemoryConfig, NormalMemory
from mcmiad_monai.networks.score import AnomalyScore


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
    encoder, head, memory, inference = model_costs()
    parts = [row.part for row in (encoder, head, memory, inference)]
    assert parts == ["encoder", "head", "memory-cosine", "inference"]
    assert encoder.parameters == 3_635_984
    assert encoder.macs // 10**6 == 920
    assert head.parameters == 2_960_404
    assert (memory.parameters, memory.trainable) == (5_000 * 272, 0)
    assert memory.macs == 196 * 272 * 5_000
    assert inference.macs == encoder.macs + head.macs + memory.macs


@pytest.mark.parametrize(
    ("source", "run"),
    [("head", ["encoder", "head"]), ("memory-cosine", ["encoder", "memory-cosine"])],
)
def test_inference_counts_what_the_score_is_made_of(source: str, run: list[str]):
    encoder = empty_encoder("test_efficientnet", grid=7)
    memory = NormalMemory(MemoryConfig(size=30, channels=encoder.out_channels))
    detector = small_detector(encoder, AnomalyScore(sources={source: 1.0}))
    detector.set_memories({"cosine": memory})
    rows = {row.part: row for row in describe(detector)}
    assert list(rows) == ["encoder", "head", "memory-cosine", "inference"]
    assert rows["inference"].flops == sum(rows[part].flops for part in run)
    assert rows["inference"].parameters == sum(rows[part].parameters for part in run)
