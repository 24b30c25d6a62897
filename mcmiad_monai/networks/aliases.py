"""A second head with the memory of a first one's weights, and gradients of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor

from mcmiad_monai.networks.head import MCMIADHead


def alias(head: MCMIADHead) -> MCMIADHead:
    """Make a head that holds the memory of another, which has no part in its graph."""
    twin = copy.deepcopy(head)
    share_memory(twin, head)
    return twin


def share_memory(twin: MCMIADHead, head: MCMIADHead) -> None:
    """Let a copy of a head hold the head's memory, wherever that is now, and be in its mode."""
    twin.train(head.training)
    for mine, own in zip(_tensors(twin), _tensors(head), strict=True):
        mine.data, mine.requires_grad = own.data, own.requires_grad


def _tensors(head: MCMIADHead) -> Iterator[Tensor]:
    yield from head.parameters()
    yield from head.buffers()
