"""A memory of normal tokens: how far is each place from the nearest normal one.

In the paper's terms the retrieved token is F_out, and with the cosine distance the score is S_cos
of Eq. 5; the idea of such a memory is PatchCore's (Roth et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Distance = Literal["cosine", "l2"]
DISTANCES: tuple[Distance, ...] = ("cosine", "l2")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Shape of a memory.

    Attributes
    ----------
    size : int
        Tokens M.
    channels : int
        Channels C of a token, as of the encoder's feature map.
    distance : {"cosine", "l2"}
        One minus the cosine, or Euclidean, of channels that are standardised.
    groups : tuple of int
        Channels of each encoder of an ensemble; their sum is `channels`. Empty is one group.

    Raises
    ------
    ValueError
        If the distance is not known or the groups do not add up.
    """

    size: int
    channels: int
    distance: Distance = "cosine"
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"distance {self.distance!r} is not known; choose one of {DISTANCES}.")
        if self.groups and sum(self.groups) != self.channels:
            raise ValueError(
                f"groups {self.groups} add up to {sum(self.groups)}, but tokens have "
                f"{self.channels} channels; take both from the encoder."
            )


class Nearest(NamedTuple):
    """The nearest normal token of every place.

    Attributes
    ----------
    distance : Tensor of shape (B, 1, g, g)
        What `NormalMemory.forward` gives.
    token : Tensor of shape (B, g, g), int64
        Row of the memory; with several groups, the one nearest in the first.
    """

    distance: Tensor
    token: Tensor


class NormalMemory(nn.Module):
    """Distance of features to the nearest of the kept tokens of normal training images.

    Parameters
    ----------
    config : MemoryConfig

    Attributes
    ----------
    tokens : Tensor of shape (M, C), float16
        Standardised; of unit length (in each group) for the cosine.
    mean, std : Tensor of shape (C,)
        Of the channels over normal training images.
    units : Tensor of shape (groups,)
        By which the distance in each group is divided before they are added.
    origin : Tensor of shape (M, 3), int32
        Number of the normal study, slice in it, and cell of the grid (row · g + column).
    """

    tokens: Tensor
    mean: Tensor
    std: Tensor
    units: Tensor
    origin: Tensor

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.options = config
        self.groups = config.groups or (config.channels,)
        self.register_buffer("tokens", torch.zeros(config.size, config.channels).half())
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))
        self.register_buffer("units", torch.ones(len(self.groups)))
        self.register_buffer("origin", torch.zeros(config.size, 3, dtype=torch.int32))

    @classmethod
    def of_tokens(
        cls,
        tokens: Tensor,
        *,
        mean: Tensor,
        std: Tensor,
        distance: Distance = "cosine",
        groups: Sequence[int] = (),
        origin: Tensor | None = None,
    ) -> NormalMemory:
        """Build a memory of tokens (M, C) as `prepare` gives them; see the attributes."""
        size, channels = tokens.shape
        config = MemoryConfig(size=size, channels=channels, distance=distance, groups=tuple(groups))
        memory = cls(config)
        memory.tokens.copy_(tokens)
        memory.mean.copy_(mean)
        memory.std.copy_(std)
        if origin is not None:
            memory.origin.copy_(origin)
        return memory

    @property
    def config(self) -> dict[str, Any]:
        """The options, fit for JSON; `memory_from_config` rebuilds an empty memory from them."""
        return asdict(self.options)

    def forward(self, features: Tensor) -> Tensor:
        """Distances (B, 1, g, g), float32, of features (B, C, g, g)."""
        each = self.group_distances(features)
        return (each / self.units[:, None, None, None, None]).sum(0)

    def group_distances(self, features: Tensor) -> Tensor:
        """Distances (groups, B, 1, g, g) in each group, before their units."""
        return self._on_grid(self._similarity(features).amax(-1), features)

    def nearest(self, features: Tensor) -> Nearest:
        """Distances, and the token that each is to."""
        found = self._similarity(features).max(-1)  # (groups, B · g²), of M
        each = self._on_grid(found.values, features)
        index = found.indices[0].reshape(len(features), *features.shape[2:])
        return Nearest((each / self.units[:, None, None, None, None]).sum(0), index)

    def _similarity(self, features: Tensor) -> Tensor:
        """Cosine, or minus the squared distance: (groups, B · g², M)."""
        queries = prepare(features, self.mean, self.std, self.options.distance, self.groups)
        parts = (tokens.split(self.groups, -1) for tokens in (queries, self.tokens.float()))
        each = []
        for query, kept in zip(*parts, strict=True):
            products = query @ kept.T  # (B · g², M)
            if self.options.distance == "l2":
                products = 2 * products - kept.square().sum(-1) - query.square().sum(-1)[:, None]
            each.append(products)
        return torch.stack(each)

    def _on_grid(self, largest: Tensor, features: Tensor) -> Tensor:
        """Distances (groups, B, 1, g, g) of the largest similarities (groups, B · g²)."""
        # rounding can make both negative
        if self.options.distance == "cosine":
            distances = (1 - largest).clamp_min(0)
        else:
            distances = (-largest).clamp_min(0).sqrt()
        return distances.reshape(len(self.groups), -1, 1, *features.shape[2:])


def prepare(
    features: Tensor, mean: Tensor, std: Tensor, distance: Distance, groups: Sequence[int]
) -> Tensor:
    """Tokens (B · g², C), float32, of features (B, C, g, g), standardised; cosine: of length 1.

    Parameters
    ----------
    mean, std : Tensor of shape (C,)
    groups : sequence of int
        Channels of each group, which has length 1 on its own.
    """
    tokens = features.float().flatten(2).transpose(1, 2).flatten(0, 1)  # (B · g², C)
    tokens = (tokens - mean) / std
    if distance == "l2":
        return tokens
    return torch.cat([F.normalize(part, dim=-1) for part in tokens.split(tuple(groups), -1)], -1)


def memory_from_config(config: Mapping[str, Any]) -> NormalMemory:
    """Rebuild an empty memory from `NormalMemory.config`, for a state dict that is loaded later."""
    return NormalMemory(MemoryConfig(**{**config, "groups": tuple(config["groups"])}))
