"""Mixture-of-experts feed-forward network (§3.5): four experts, the best two for each token."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Balance = Literal["softmax", "logits"]
Dispatch = Literal["auto", "grouped", "dense"]

DENSE_TOKENS = 2**13
"""Most tokens for which a GPU computes all experts; for more, it would need too much memory."""


MEAN_EPSILON = 1e-10
"""Added to the squared mean of the importance, as MoEAD does; raw logits can add up to zero."""


class MixtureOfExperts(nn.Module):
    """Feed-forward experts of which each token uses its `top_k` best, without a capacity limit.

    The gate's softmax is taken over the chosen experts only.

    Parameters
    ----------
    dim : int
        Width D of the tokens.
    hidden : int
        Width H of an expert's hidden layer.
    experts : int
        Number of experts E.
    top_k : int
        Experts k that a token uses.
    dropout : float
        Dropout after the hidden layer.
    balance : {"softmax", "logits"}
        Whether the importance of an expert is the sum of its probabilities, or that of the gate's
        raw outputs, whose mean over the experts can be near zero.
    dispatch : {"auto", "grouped", "dense"}
        ``"grouped"`` computes the chosen experts only, so that its shapes depend on the data. It
        can be exported. ``"dense"`` computes all experts, with fixed shapes, as CUDA graphs and
        `torch.compile` need them. ``"auto"`` is dense there, and grouped elsewhere. Both give the
        same numbers, to rounding.

    Raises
    ------
    ValueError
        If `top_k` is not between 1 and `experts`.
    """

    def __init__(
        self,
        dim: int = 256,
        *,
        hidden: int = 1024,
        experts: int = 4,
        top_k: int = 2,
        dropout: float = 0.1,
        balance: Balance = "softmax",
        dispatch: Dispatch = "auto",
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k is {top_k}; it must lie between 1 and the {experts} experts.")
        self.experts, self.top_k = experts, top_k
        self.balance, self.dispatch = balance, dispatch
        self.gate = nn.Linear(dim, experts)
        self.up = nn.Parameter(torch.empty(experts, hidden, dim))
        self.up_bias = nn.Parameter(torch.zeros(experts, hidden))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden))
        self.down_bias = nn.Parameter(torch.zeros(experts, dim))
        self.activation = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        for expert in range(experts):
            nn.init.xavier_uniform_(self.up.data[expert])
            nn.init.xavier_uniform_(self.down.data[expert])

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Send each token through its experts.

        Parameters
        ----------
        tokens : Tensor of shape (B, N, D)

        Returns
        -------
        output : Tensor of shape (B, N, D)
        importance : Tensor of shape (E,)
            Sum over the tokens of the gate's probabilities over all experts, or of its raw outputs
            (see `balance`), in float32.
        """
        logits = self.gate(tokens).float()  # (B, N, E)
        best, chosen = logits.topk(self.top_k, dim=-1)  # (B, N, k)
        weights = best.softmax(dim=-1)  # (B, N, k)
        flat = tokens.flatten(0, 1)  # (T, D)
        run = self._dense if self.is_dense(flat.shape[0]) else self._grouped
        output = run(flat, weights.flatten(0, 1), chosen.flatten(0, 1))  # (T, D)
        importance = logits if self.balance == "logits" else logits.softmax(dim=-1)  # (B, N, E)
        return output.view_as(tokens), importance.sum(dim=(0, 1))

    def is_dense(self, tokens: int) -> bool:
        """Whether so many tokens are computed with fixed shapes."""
        if self.dispatch != "auto":
            return self.dispatch == "dense"
        if torch.compiler.is_dynamo_compiling():
            return True
        return self.up.device.type == "cuda" and tokens <= DENSE_TOKENS

    def _grouped(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Run each expert on the tokens that chose it: (T, D), (T, k), (T, k) → (T, D)."""
        flat = chosen.flatten()  # (T·k,)
        places = [(flat == expert).nonzero().flatten() for expert in range(self.experts)]
        groups = [tokens.index_select(0, place // self.top_k) for place in places]
        # unbound at once: the gradient of one expert's weights would be padded with zeros
        stacked = (self.up, self.up_bias, self.down, self.down_bias)
        experts = zip(*(parameter.unbind() for parameter in stacked), strict=True)
        rows = [
            F.linear(self.activation(F.linear(group, up, up_bias)), down, down_bias)
            for group, (up, up_bias, down, down_bias) in zip(groups, experts, strict=True)
        ]
        found = torch.cat(rows)  # (T·k, D), expert by expert
        empty = found.new_zeros(flat.shape[0], tokens.shape[1])
        back = empty.index_put((torch.cat(places),), found).view(*chosen.shape, -1)  # (T, k, D)
        return (back * weights.to(back.dtype)[..., None]).sum(dim=1)

    def _dense(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Run every expert on every token; those that a token did not choose weigh zero.

        All experts are one wide layer, whose hidden units are multiplied by the gate's weights.
        """
        gates = weights.new_zeros(tokens.shape[0], self.experts).scatter(
            1, chosen, weights
        )  # (T, E)
        wide = F.linear(tokens, self.up.flatten(0, 1), self.up_bias.flatten())  # (T, E·H)
        gates = gates.to(wide.dtype)
        hidden = self.activation(wide).unflatten(1, (self.experts, -1))  # (T, E, H)
        weighed = (hidden * gates[..., None]).flatten(1)  # (T, E·H)
        down = self.down.transpose(0, 1).flatten(1)  # (D, E·H)
        return F.linear(weighed, down) + F.linear(gates, self.down_bias.T)


def balance_loss(importance: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' importance, zero when all are used alike.

    Parameters
    ----------
    importance : Tensor of shape (E,) or (M, E)
        Of the experts, summed over tokens; a row for each mixture.

    Returns
    -------
    Tensor of shape ()
        Summed over the mixtures.
    """
    if importance.shape[-1] == 1:
        return importance.new_zeros(())
    return (importance.var(dim=-1) / (importance.mean(dim=-1).square() + MEAN_EPSILON)).sum()
