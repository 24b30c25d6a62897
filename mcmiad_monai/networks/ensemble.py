"""Several frozen encoders as one: their features side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mcmiad_monai.networks.frozen import FrozenEncoder
from mcmiad_monai.networks.weights import WeightsError

JOIN = "+"
"""Between the names of members, and between their weights."""

WORDS = ("pretrained", "packaged", "random")
"""Weights that one word names for every member."""


class EnsembleEncoder(FrozenEncoder):
    """Image in [0, 1] → concatenated features of its members, each as it is alone.

    Every member has its own normalisation constants and its own pooling.

    Parameters
    ----------
    members : sequence of FrozenEncoder
        At least two, on one grid.

    Attributes
    ----------
    stage_channels, out_channels, member_channels
        Of all members, one after the other.
    provenance : dict
        ``members`` has that of each; ``tensors_sha256`` is a digest of their digests.
    config : dict
        Fit for JSON; ``members`` has that of each.

    Raises
    ------
    ValueError
        If there is only one member, or they have several grids.
    """

    def __init__(self, members: Sequence[FrozenEncoder]) -> None:
        nn.Module.__init__(self)  # a plain encoder's constructor would want a trunk
        grids = [member.grid for member in members]
        if len(members) < 2 or len(set(grids)) > 1:
            raise ValueError(
                f"the members of an ensemble have the grids {grids}; two or more members on one "
                "grid are needed. Build all with the same grid."
            )
        self.encoders = nn.ModuleList(members)
        self.grid = grids[0]
        self.stage_channels = tuple(c for member in members for c in member.stage_channels)
        self.out_channels = sum(self.stage_channels)
        self.config = {"members": [member.config for member in members]}
        self.train(False)

    @property
    def members(self) -> tuple[FrozenEncoder, ...]:
        """The encoders."""
        return tuple(self.encoders)  # type: ignore[arg-type]

    @property
    def provenance(self) -> dict[str, Any]:
        """That of every member, and what stands for all of them."""
        each = [member.provenance for member in self.members]
        digests = JOIN.join(one["tensors_sha256"] for one in each)
        return {
            "name": JOIN.join(one["name"] for one in each),
            "weights": f" {JOIN} ".join(str(one.get("weights")) for one in each),
            "pool": JOIN.join(sorted({one["pool"] for one in each})),
            "timm_version": timm.__version__,
            "members": each,
            "tensors_sha256": hashlib.sha256(digests.encode()).hexdigest(),
        }

    @provenance.setter
    def provenance(self, value: dict[str, Any]) -> None:
        for member, own in zip(self.members, value["members"], strict=True):
            member.provenance = own

    def update_digest(self) -> None:
        """Write the SHA-256 of each member's tensors into its provenance."""
        for member in self.members:
            member.update_digest()

    def forward(self, image: Tensor) -> Tensor:
        """Encode images (B, 1 or 3, H, W) to features (B, C, grid, grid)."""
        return torch.cat([member(image) for member in self.members], dim=1)


def member_weights(weights: str, members: int) -> list[str]:
    """Weights of each member out of ``"a+b"``, or one word of `WORDS` for all.

    A ``+`` in the path of an existing file is part of that path.

    Raises
    ------
    WeightsError
        If there are not as many as members, or they can be read in several ways.
    """
    if members == 1 or weights in WORDS:
        return [weights] * members
    one_file = Path(weights).is_file()
    ways = [] if one_file else list(_ways(weights.split(JOIN), members))
    if len(ways) == 1:
        return ways[0]
    if len(ways) > 1:
        raise WeightsError(
            f"the weights {weights!r} can be read as {' or as '.join(map(str, ways))}, since all "
            f"of these files exist. Rename those with a {JOIN!r} in their names."
        )
    found = 1 if one_file else weights.count(JOIN) + 1
    raise WeightsError(
        f"{weights!r} names {found} weights, and the encoder has {members} members. Give one for "
        f"each, joined by {JOIN!r} in their order, or one of {', '.join(WORDS)} for all. A path "
        f"with a {JOIN!r} in it must be that of an existing file."
    )


def _ways(parts: list[str], members: int) -> Iterator[list[str]]:
    """Ways to share parts among members, where several parts of one must be an existing file."""
    for cuts in combinations(range(1, len(parts)), members - 1):
        ends = zip((0, *cuts), (*cuts, len(parts)), strict=True)
        joined = [JOIN.join(parts[start:end]) for start, end in ends]
        if all(JOIN not in one or Path(one).is_file() for one in joined):
            yield joined
