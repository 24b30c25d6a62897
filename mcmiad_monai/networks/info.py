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
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.text_prior import encode_hashing

IMAGE_SIZE = 224
"""Side of the network's input in pixels (§4.2)."""


class PartCost(NamedTuple):
    """Cost of one part for one slice.

    Attributes
    ----------
    part : str
    parameters, trainable : int
        All parameters, and those that training changes.
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
    """Rows for every encoder, the head and all together, for one slice of `size` × `size` pixels.

    An encoder alone is ``"encoder"``; members of an ensemble are ``"encoder NAME"``.
    """
    parameter = next(detector.parameters())
    image = torch.zeros(1, 1, size, size, device=parameter.device)
    grid, channels = detector.encoder.grid, detector.encoder.out_channels
    features = image.new_zeros(1, channels, grid, grid).to(parameter.dtype)
    parts = [*encoder_costs(detector.encoder, image), part_cost("head", detector.head, features)]
    total = (sum(counts) for counts in zip(*(part[1:] for part in parts), strict=True))
    return [*parts, PartCost("total", *total)]


def encoder_costs(encoder: FrozenEncoder, image: torch.Tensor) -> list[PartCost]:
    """A row for each member of an encoder, for one image."""
    members = encoder.members
    if len(members) == 1:
        return [part_cost("encoder", encoder, image)]
    return [part_cost(f"encoder {m.provenance['name']}", m, image) for m in members]


def model_costs(*, model: Path | None = None, encoder: str = DEFAULT_ENCODER) -> list[PartCost]:
    """Costs of a packaged model, or of the default head behind a named encoder."""
    return describe(_default_detector(encoder) if model is None else load_package(model))


def _default_detector(name: str) -> MCMIADDetector:
    encoder = empty_encoder(name)
    head = build_head(
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        prior=encode_hashing(normal_prompts()),
    )
    return MCMIADDetector(encoder, head)


def part_cost(name: str, module: nn.Module, example: torch.Tensor) -> PartCost:
    """Count one module's parameters, and its operations on `example`."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    trainable = sum(count for count, trains in sizes if trains)
    return PartCost(name, sum(count for count, _ in sizes), trainable, _flops(module, example))


def _flops(module: nn.Module, example: torch.Tensor) -> int:
    training = module.training
    module.eval()
    # The counter does not know the fused attention of a CPU; the plain one is made of products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(example)
    module.train(training)
    return counter.get_total_flops()
