"""Parameters and operations of a detector, counted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import DEFAULT_ENCODER, FrozenEncoder, empty_encoder
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.networks.memory import MemoryConfig, NormalMemory
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import encode_hashing

IMAGE_SIZE = 224
"""Side of the network's input in pixels (§4.2)."""

MEMORY_SIZE = 5_000
"""Tokens of the default memory."""


class PartCost(NamedTuple):
    """Cost of one part for one slice.

    Attributes
    ----------
    part : str
    parameters, trainable : int
        All parameters, or numbers that are kept, and those that training changes.
    flops : int
        Floating-point operations of one slice in evaluation: 2 for each multiply-accumulate.
    """

    part: str
    parameters: int
    trainable: int
    flops: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one slice, half of `flops`."""
        return self.flops // 2


def describe(detector: MCMIADDetector, *, size: int = IMAGE_SIZE) -> list[PartCost]:
    """Rows for the parts of a detector, and what inference runs, for `size` × `size` pixels.

    An encoder alone is ``"encoder"``; members of an ensemble are ``"encoder NAME"``. Parameters of
    a memory are the numbers that it keeps. ``"inference"`` leaves out what the score does not use.
    """
    encoder, device = detector.encoder, detector.heat_scale.device
    image = torch.zeros(1, detector.channels, size, size, device=device)
    features = torch.zeros(1, encoder.out_channels, encoder.grid, encoder.grid, device=device)
    encoders = encoder_costs(encoder, image)
    sources = {f"memory-{name}": memory for name, memory in detector.memories.items()}
    if detector.head is not None:
        sources = {"head": detector.head, **sources}
    others = [part_cost(name, module, features) for name, module in sources.items()]
    run = [*encoders, *(part for part in others if part.part in detector.score.sources)]
    total = (sum(counts) for counts in zip(*(part[1:] for part in run), strict=True))
    return [*encoders, *others, PartCost("inference", *total)]


def encoder_costs(encoder: FrozenEncoder, image: torch.Tensor) -> list[PartCost]:
    """A row for each member of an encoder, for one image."""
    members = encoder.members
    if len(members) == 1:
        return [part_cost("encoder", encoder, image)]
    return [part_cost(f"encoder {m.provenance['name']}", m, image) for m in members]


def model_costs(*, model: Path | None = None, encoder: str = DEFAULT_ENCODER) -> list[PartCost]:
    """Costs of a packaged model, or of default head and memory behind a named encoder."""
    return describe(_default_detector(encoder) if model is None else load_package(model))


def _default_detector(name: str) -> MCMIADDetector:
    encoder = empty_encoder(name)
    head = build_head(
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        prior=encode_hashing(normal_prompts()),
    )
    memory = NormalMemory(MemoryConfig(size=MEMORY_SIZE, channels=encoder.out_channels))
    score = AnomalyScore(sources={"head": 1.0, "memory-cosine": 1.0})
    return MCMIADDetector(encoder, head, score, {"cosine": memory})


def part_cost(name: str, module: nn.Module, example: torch.Tensor) -> PartCost:
    """Count one module's parameters, and its operations on `example`."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    kept = module.tokens.numel() if isinstance(module, NormalMemory) else 0
    count = kept + sum(p.numel() for p in module.parameters())
    return PartCost(name, count, trainable, _flops(module, example))


def _flops(module: nn.Module, example: torch.Tensor) -> int:
    training = module.training
    module.eval()
    # The counter does not know the fused attention of a CPU; the plain one is made of products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(example)
    module.train(training)
    return counter.get_total_flops()
