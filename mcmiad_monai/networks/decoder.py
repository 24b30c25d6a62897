"""The denoising decoder (§3.5, Fig. 2): rounds of masked attention with shared weights.

Every round starts from the same learned query. It attends to the projected input, then to the
output of the previous round, and ends in a mixture of experts. Both attentions leave out the
neighbourhood of a token, so that no token can copy itself. Only the LayerNorms are a round's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.attention import MultiHeadAttention, neighbourhood_blocked
from mcmiad_monai.networks.moe import Balance, MixtureOfExperts

SecondFFN = Literal["first_attention", "last"]
Initialisation = Literal["xavier", "moead"]

CHOICES: dict[str, tuple[str, ...]] = {
    "second_ffn": ("first_attention", "last"),
    "initialisation": ("xavier", "moead"),
    "balance": ("softmax", "logits"),
}
"""Words that options of the decoder may have."""

DROPOUTS = ("dropout", "attention_dropout", "residual_dropout", "ffn_dropout")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Options of the decoder; the defaults are the paper's (§3.5, §4.2).

    MoEAD's decoder, as its authors published its code, has ``ffn_per_round=2``,
    ``second_ffn="last"``, 0.1 in all four dropouts, ``query_std=1``, ``initialisation="moead"`` and
    ``balance="logits"``.

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
        2 adds a second mixture, with experts of its own.
    second_ffn : {"first_attention", "last"}
        Where it is: behind the first attention, or behind the first mixture.
    attention_dropout : float
        Of the weights of both attentions. In training the first attention is then computed in each
        round.
    residual_dropout : float
        Of what both attentions add to their residuals.
    ffn_dropout : float
        Of what the mixtures add to their residuals; `dropout` is that of their hidden layers.
    query_std : float
        Standard deviation from which the learned query starts. It is small, so that the first
        LayerNorm of a round passes on what the query attended to and not the query's noise:
        training starts several times faster than from a standard normal.
    initialisation : {"xavier", "moead"}
        ``"xavier"`` is Xavier-uniform in all linear layers and experts. ``"moead"`` differs in two
        places; see `initialise_as_moead`.
    balance : {"softmax", "logits"}
        Importance of the experts: their probabilities, summed over all rounds, or the gate's raw
        outputs in the last round.
    savings : bool
        The first attention has the same query, keys and values in every round. True computes it
        once; False computes it in each round. Numbers and gradients are the same.

    Raises
    ------
    ValueError
        If `ffn_per_round` is not 1 or 2, `rounds` is less than 1, `dim` is odd, a dropout is not in
        [0, 1), `query_std` is negative, or a word is not known.
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
    second_ffn: SecondFFN = "first_attention"
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    ffn_dropout: float = 0.0
    query_std: float = 0.02
    initialisation: Initialisation = "xavier"
    balance: Balance = "softmax"
    savings: bool = True

    def __post_init__(self) -> None:
        if self.ffn_per_round not in (1, 2) or self.rounds < 1 or self.heads < 1 or self.dim % 2:
            raise ValueError(
                f"the decoder has ffn_per_round={self.ffn_per_round}, rounds={self.rounds}, "
                f"heads={self.heads}, dim={self.dim}; 1 or 2 feed-forward networks, at least "
                "1 round and head, and an even width are needed."
            )
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise ValueError(
                    f"the decoder has {name}={getattr(self, name)!r}; choose one of {words}."
                )
        rates = {name: getattr(self, name) for name in DROPOUTS}
        if not all(0 <= rate < 1 for rate in rates.values()) or self.query_std < 0:
            raise ValueError(
                f"the decoder has query_std={self.query_std} and the dropouts {rates}; each "
                "dropout must lie in [0, 1), and query_std must be at least 0."
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
        query = options.query_std * torch.randn(1, options.grid**2, dim)
        self.query = nn.Parameter(query)  # (1, N, D)
        self.position = PositionEmbedding(options.grid, dim)
        self.input_attention, self.round_attention = (
            MultiHeadAttention(dim, options.heads, dropout=options.attention_dropout)
            for _ in range(2)
        )
        self.ffns = nn.ModuleList(
            MixtureOfExperts(
                dim,
                hidden=options.hidden,
                experts=options.experts,
                top_k=options.top_k,
                dropout=options.dropout,
                balance=options.balance,
            )
            for _ in range(options.ffn_per_round)
        )
        self.norms = nn.ModuleList(
            RoundNorms(dim, options.ffn_per_round) for _ in range(options.rounds)
        )
        allowed = ~neighbourhood_blocked(options.grid, options.neighbourhood)  # (N, N)
        self.register_buffer("allowed", allowed, persistent=False)
        initialise_linear_layers(self)
        if options.initialisation == "moead":
            initialise_as_moead(self)

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
            Of the experts, summed over all rounds, or in the last one if ``balance="logits"``; a
            row for each mixture of a round. See `MixtureOfExperts`.
        """
        options, position = self.options, self.position()  # (1, N, D)
        again = not options.savings or (self.training and options.attention_dropout > 0)
        attended = self._attend_input(tokens, position)  # (B, N, D)
        output, importance = tokens, []
        for index, norms in enumerate(self.norms):
            if index and again:
                attended = self._attend_input(tokens, position)
            output, used = self._round(attended, output, position, cast(RoundNorms, norms))
            importance.append(used)
        if options.balance == "logits":
            return output, importance[-1]
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
        options = self.options
        used: dict[int, Tensor] = {}
        x = norms.input(self.query + self._dropped(attended, options.residual_dropout))  # (B, N, D)
        if norms.extra is not None and options.second_ffn == "first_attention":
            x, used[1] = self._mix(1, x, norms.extra)
        memory = self.round_attention.project(previous + position, previous)
        seen = self.round_attention(x + position, memory, self.allowed)
        x = norms.round(x + self._dropped(seen, options.residual_dropout))
        x, used[0] = self._mix(0, x, norms.ffn)
        if norms.extra is not None and options.second_ffn == "last":
            x, used[1] = self._mix(1, x, norms.extra)
        return x, torch.stack([used[index] for index in sorted(used)])

    def _mix(self, index: int, x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """One mixture with residual and norm: (B, N, D), and importance (E,)."""
        mixed, importance = self.ffns[index](x)
        return norm(x + self._dropped(mixed, self.options.ffn_dropout)), importance

    def _dropped(self, added: Tensor, rate: float) -> Tensor:
        """Dropout of what is added to a residual; no operation at all where there is none."""
        return F.dropout(added, rate) if self.training and rate > 0 else added


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


def initialise_as_moead(decoder: RecursiveMoEDecoder) -> None:
    """Initial weights in which MoEAD's code differs from Xavier-uniform.

    Query, key and value projections are one matrix (3 D, D) for `xavier_uniform_`, which lowers
    their bound by √2. Experts, in fastmoe, are uniform up to 1 / √(inputs · outputs): its fan-in
    counts both dimensions of a weight.
    """
    for attention in (decoder.input_attention, decoder.round_attention):
        for layer in (attention.query, attention.key, attention.value):
            nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)
    for ffn in decoder.ffns:
        for weight in (cast(MixtureOfExperts, ffn).up, cast(MixtureOfExperts, ffn).down):
            bound = weight[0].numel() ** -0.5
            nn.init.uniform_(weight, -bound, bound)
