"""The denoising decoder (§3.5, Fig. 2): rounds of masked attention with shared weights.

A round starts from the same learned query. It attends to the projected input, then to the output
of the round before, and ends in a mixture of experts. Both attentions leave out the neighbourhood
of a token, so that no token can copy itself. LayerNorms are a round's only weights of its own.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.attention import MultiHeadAttention, neighbourhood_blocked
from mcmiad_monai.networks.moe import Dispatch, MixtureOfExperts

QUERY_STD = 0.02
"""Standard deviation from which the learned query starts."""


class RecursiveMoEDecoder(nn.Module):
    """Rebuild tokens from the distant ones.

    Parameters
    ----------
    grid : int
        Tokens a side; N = grid².
    dim, heads : int
        Width of the tokens and heads of both attentions.
    rounds : int
        Passes through the shared weights.
    experts, top_k, hidden, dropout, dispatch
        The mixture of experts; see `MixtureOfExperts`.
    neighbourhood : int
        Side of the blocked window in tokens; 0 blocks nothing.
    ffn_per_round : {1, 2}
        2 puts a second mixture, with experts of its own, after the first attention.
    savings : bool
        The first attention has the same query, keys and values in every round. True computes it
        once; False computes it each time. The numbers and gradients are the same.

    Raises
    ------
    ValueError
        If `ffn_per_round` is not 1 or 2, `rounds` is less than 1 or `dim` is odd.
    """

    allowed: Tensor

    def __init__(
        self,
        *,
        grid: int = 14,
        dim: int = 256,
        heads: int = 8,
        rounds: int = 4,
        experts: int = 4,
        top_k: int = 2,
        hidden: int = 1024,
        dropout: float = 0.1,
        neighbourhood: int = 7,
        ffn_per_round: int = 1,
        savings: bool = True,
        dispatch: Dispatch = "auto",
    ) -> None:
        super().__init__()
        if ffn_per_round not in (1, 2) or rounds < 1 or dim % 2:
            raise ValueError(
                f"the decoder has ffn_per_round={ffn_per_round}, rounds={rounds}, dim={dim}; "
                "needed are 1 or 2 feed-forward networks, at least 1 round and an even width."
            )
        self.rounds, self.ffn_per_round, self.savings = rounds, ffn_per_round, savings
        # Small, so that the first norm of a round passes on what the query saw and not its noise:
        # training starts several times faster than from a standard normal.
        self.query = nn.Parameter(QUERY_STD * torch.randn(1, grid**2, dim))  # (1, N, D)
        self.position = PositionEmbedding(grid, dim)
        self.input_attention = MultiHeadAttention(dim, heads)
        self.round_attention = MultiHeadAttention(dim, heads)
        self.ffns = nn.ModuleList(
            MixtureOfExperts(
                dim, hidden=hidden, experts=experts, top_k=top_k, dropout=dropout, dispatch=dispatch
            )
            for _ in range(ffn_per_round)
        )
        self.norms = nn.ModuleList(RoundNorms(dim, ffn_per_round) for _ in range(rounds))
        allowed = ~neighbourhood_blocked(grid, neighbourhood)  # (N, N)
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
            Of the experts over all rounds, a row for each mixture of a round; see
            `MixtureOfExperts`.
        """
        position = self.position()  # (1, N, D)
        output, importance = tokens, [torch.zeros((), device=tokens.device)] * self.ffn_per_round
        attended = self._attend_input(tokens, position)  # (B, N, D)
        for index, norms in enumerate(self.norms):
            if index and not self.savings:
                attended = self._attend_input(tokens, position)
            output, used = self._round(attended, output, position, cast(RoundNorms, norms))
            importance = [total + new for total, new in zip(importance, used, strict=True)]
        return output, torch.stack(importance)

    def has_fixed_shapes(self, images: int) -> bool:
        """Whether no shape depends on the data, for so many images."""
        tokens = images * self.allowed.shape[0]
        return all(cast(MixtureOfExperts, ffn).is_dense(tokens) for ffn in self.ffns)

    def _attend_input(self, tokens: Tensor, position: Tensor) -> Tensor:
        """First attention of a round: the learned query looks at the input."""
        memory = self.input_attention.project(tokens + position, tokens)
        return self.input_attention(self.query + position, memory, self.allowed)  # (B, N, D)

    def _round(
        self,
        attended: Tensor,
        previous: Tensor,
        position: Tensor,
        norms: RoundNorms,
    ) -> tuple[Tensor, list[Tensor]]:
        """Everything of a round after its first attention."""
        used: list[Tensor] = []
        x = norms.input(self.query + attended)  # (B, N, D)
        if norms.extra is not None:
            x, importance = self._feed_forward(1, x, norms.extra)
            used.append(importance)
        memory = self.round_attention.project(previous + position, previous)
        x = norms.round(x + self.round_attention(x + position, memory, self.allowed))
        x, importance = self._feed_forward(0, x, norms.ffn)
        return x, [importance, *used]

    def _feed_forward(self, index: int, x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        mixed, importance = self.ffns[index](x)
        return norm(x + mixed), importance


class RoundNorms(nn.Module):
    """The LayerNorms of one round, one behind each residual."""

    def __init__(self, dim: int, ffn_per_round: int) -> None:
        super().__init__()
        self.input = nn.LayerNorm(dim)
        self.round = nn.LayerNorm(dim)
        self.ffn = nn.LayerNorm(dim)
        self.extra = nn.LayerNorm(dim) if ffn_per_round == 2 else None


class PositionEmbedding(nn.Module):
    """Learned embedding of the row beside that of the column, drawn from U(0, 1)."""

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
