"""The denoising decoder (§3.5, Fig. 2): rounds of masked attention with shared weights.

Every round starts from the same learned query. It attends to the projected input, then to the
output of the previous round, and ends in a mixture of experts. Both attentions leave out the
neighbourhood of a token, so that no token can copy itself. Only the LayerNorms are a round's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.attention import MultiHeadAttention, neighbourhood_blocked
from mcmiad_monai.networks.moe import MixtureOfExperts

QUERY_STD = 0.02
"""Standard deviation from which the learned query starts.

It is small, so that the first LayerNorm of a round passes on what the query attended to and not the
query's noise: training starts several times faster than from a standard normal.
"""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Options of the decoder; the defaults are the paper's (§3.5, §4.2).

    Attributes
    ----------
    grid : int
        Tokens a side; N = grid².
    dim, heads : int
        Width D of the tokens, and heads of both attentions.
    rounds : int
        Passes through the shared weights.
    experts, top_k, hidden, dropout
        The mixture of experts; see `MixtureOfExperts`.
    neighbourhood : int
        Side of the blocked window in tokens; 0 blocks nothing.
    ffn_per_round : {1, 2}
        2 adds a second mixture, with experts of its own, after the first attention.
    savings : bool
        The first attention has the same query, keys and values in every round. True computes it
        once; False computes it in each round. Numbers and gradients are the same.

    Raises
    ------
    ValueError
        If `ffn_per_round` is not 1 or 2, `rounds` is less than 1 or `dim` is odd.
    """

    grid: int = 14
    dim: int = 256
    heads: int = 8
    rounds: int = 4
    experts: int = 4
    top_k: int = 2
    hidden: int = 1024
    dropout: float = 0.1
    neighbourhood: int = 7
    ffn_per_round: int = 1
    savings: bool = True

    def __post_init__(self) -> None:
        if self.ffn_per_round not in (1, 2) or self.rounds < 1 or self.dim % 2:
            raise ValueError(
                f"the decoder has ffn_per_round={self.ffn_per_round}, rounds={self.rounds}, "
                f"dim={self.dim}; 1 or 2 feed-forward networks, at least 1 round and an even width "
                "are needed."
            )


class RecursiveMoEDecoder(nn.Module):
    """Rebuild each token from distant ones.

    Parameters
    ----------
    options : DecoderConfig
    """

    allowed: Tensor

    def __init__(self, options: DecoderConfig) -> None:
        super().__init__()
        self.options, dim = options, options.dim
        self.query = nn.Parameter(QUERY_STD * torch.randn(1, options.grid**2, dim))  # (1, N, D)
        self.position = PositionEmbedding(options.grid, dim)
        self.input_attention = MultiHeadAttention(dim, options.heads)
        self.round_attention = MultiHeadAttention(dim, options.heads)
        self.ffns = nn.ModuleList(
            MixtureOfExperts(
                dim,
                hidden=options.hidden,
                experts=options.experts,
                top_k=options.top_k,
                dropout=options.dropout,
            )
            for _ in range(options.ffn_per_round)
        )
        self.norms = nn.ModuleList(
            RoundNorms(dim, options.ffn_per_round) for _ in range(options.rounds)
        )
        allowed = ~neighbourhood_blocked(options.grid, options.neighbourhood)  # (N, N)
        self.register_buffer("allowed", allowed, persistent=False)
        initialise_linear_layers(self)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct.

        Parameters
        ----------
        tokens : Tensor of shape (B, N, D)
            The projected, fused and, in training, jittered input.

        Returns
        -------
        output : Tensor of shape (B, N, D)
        importance : Tensor of shape (M, E)
            Of the experts, summed over all rounds; a row for each mixture of a round. See
            `MixtureOfExperts`.
        """
        position = self.position()  # (1, N, D)
        attended = self._attend_input(tokens, position)  # (B, N, D)
        output, importance = tokens, []
        for index, norms in enumerate(self.norms):
            if index and not self.options.savings:
                attended = self._attend_input(tokens, position)
            output, used = self._round(attended, output, position, cast(RoundNorms, norms))
            importance.append(used)
        return output, torch.stack(importance).sum(dim=0)

    def has_fixed_shapes(self, images: int) -> bool:
        """Whether no shape depends on the data, for so many images."""
        tokens = images * self.allowed.shape[0]
        return all(cast(MixtureOfExperts, ffn).is_dense(tokens) for ffn in self.ffns)

    def _attend_input(self, tokens: Tensor, position: Tensor) -> Tensor:
        """First attention of a round: the learned query attends to the input."""
        memory = self.input_attention.project(tokens + position, tokens)
        return self.input_attention(self.query + position, memory, self.allowed)  # (B, N, D)

    def _round(
        self, attended: Tensor, previous: Tensor, position: Tensor, norms: RoundNorms
    ) -> tuple[Tensor, Tensor]:
        """Everything of a round after its first attention: its output, and importance (M, E)."""
        used = []
        x = norms.input(self.query + attended)  # (B, N, D)
        if norms.extra is not None:
            mixed, importance = self.ffns[1](x)
            used.append(importance)
            x = norms.extra(x + mixed)
        memory = self.round_attention.project(previous + position, previous)
        x = norms.round(x + self.round_attention(x + position, memory, self.allowed))
        mixed, importance = self.ffns[0](x)
        return norms.ffn(x + mixed), torch.stack([importance, *used])


class RoundNorms(nn.Module):
    """The LayerNorms of one round, one after each residual."""

    def __init__(self, dim: int, ffn_per_round: int) -> None:
        super().__init__()
        self.input = nn.LayerNorm(dim)
        self.round = nn.LayerNorm(dim)
        self.ffn = nn.LayerNorm(dim)
        self.extra = nn.LayerNorm(dim) if ffn_per_round == 2 else None


class PositionEmbedding(nn.Module):
    """Learned embeddings of row and column, concatenated; they start from U(0, 1)."""

    def __init__(self, grid: int, dim: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.rand(grid, dim // 2))
        self.column = nn.Parameter(torch.rand(grid, dim // 2))

    def forward(self) -> Tensor:
        """Embeddings of all tokens in row-major order, (1, N, D)."""
        grid = self.row.shape[0]
        rows = self.row[:, None].expand(-1, grid, -1)  # (grid, grid, D / 2)
        columns = self.column[None].expand(grid, -1, -1)  # (grid, grid, D / 2)
        return torch.cat([rows, columns], dim=-1).flatten(0, 1)[None]


def initialise_linear_layers(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in every linear layer below `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
