"""Mixture-of-experts feed-forward network (§3.5): four experts, the best two for each token."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.dropout import Dropout

Dispatch = Literal["auto", "grouped", "routed", "dense"]


class MixtureOfExperts(nn.Module):
    """Feed-forward experts of which each token uses its `top_k` best, without a capacity limit.

    The gate's softmax is taken over the chosen experts only.

    Parameters
    ----------
    dim : int
        Width D of the tokens.
    hidden : int
        Width of an expert's hidden layer.
    experts : int
        Number of experts E.
    top_k : int
        Experts a token uses.
    dropout : float
        Dropout after the hidden layer.
    dispatch : {"auto", "grouped", "routed", "dense"}
        ``"grouped"`` computes chosen experts alone, but its shapes depend on the data.
        ``"routed"`` does the same in operations that a graph can hold. ``"dense"`` computes all
        experts with fixed shapes. ``"auto"`` is grouped in eager mode, routed where a graph is
        exported or traced, and dense where one is compiled. The numbers are the same.

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
        dispatch: Dispatch = "auto",
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k is {top_k}; it must lie between 1 and the {experts} experts.")
        self.experts, self.top_k, self.dispatch = experts, top_k, dispatch
        self.gate = nn.Linear(dim, experts)
        self.up = nn.Parameter(torch.empty(experts, hidden, dim))
        self.up_bias = nn.Parameter(torch.zeros(experts, hidden))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden))
        self.down_bias = nn.Parameter(torch.zeros(experts, dim))
        self.dropout = Dropout(dropout)
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
            Sum over the tokens of the gate's probabilities over all experts, in float32.
        """
        logits = self.gate(tokens).float()  # (B, N, E)
        best, chosen = logits.topk(self.top_k, dim=-1)  # (B, N, k)
        weights = best.softmax(dim=-1)  # (B, N, k)
        run = getattr(self, f"_{self._form()}")
        flat = run(tokens.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1))  # (T, D)
        importance = logits.softmax(dim=-1).sum(dim=(0, 1))  # (E,)
        return flat.view_as(tokens), importance

    def _form(self) -> str:
        if self.dispatch != "auto":
            return self.dispatch
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return "routed"
        return "dense" if torch.compiler.is_compiling() else "grouped"

    def _grouped(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Sort the (token, expert) pairs by expert and run each expert on its own rows."""
        order = chosen.flatten().argsort(stable=True)  # (T·k,)
        sizes = chosen.flatten().bincount(minlength=self.experts).tolist()
        groups = tokens[order // self.top_k].split(sizes)
        rows = torch.cat([self._expert(e, group) for e, group in enumerate(groups)])  # (T·k, D)
        back = rows[order.argsort()].view(*chosen.shape, -1)  # (T, k, D)
        return (back * weights.to(back.dtype)[..., None]).sum(dim=1)

    def _routed(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Gather the rows of each expert, whose number the graph leaves open, and scatter back."""
        flat = chosen.flatten()  # (T·k,)
        places = [(flat == e).nonzero().flatten() for e in range(self.experts)]
        rows = [self._expert(e, tokens[place // self.top_k]) for e, place in enumerate(places)]
        empty = tokens.new_zeros(flat.shape[0], tokens.shape[1])
        back = empty.index_put((torch.cat(places),), torch.cat(rows).to(empty.dtype))
        return (back.view(*chosen.shape, -1) * weights.to(back.dtype)[..., None]).sum(dim=1)

    def _expert(self, index: int, rows: Tensor) -> Tensor:
        hidden = F.linear(rows, self.up[index], self.up_bias[index]).relu()
        return F.linear(self.dropout(hidden), self.down[index], self.down_bias[index])

    def _dense(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Run every expert on every token; experts that a token did not choose weigh zero."""
        batch = tokens.expand(self.experts, -1, -1)  # (E, T, D)
        hidden = torch.baddbmm(self.up_bias[:, None], batch, self.up.transpose(1, 2)).relu()
        rows = torch.baddbmm(
            self.down_bias[:, None], self.dropout(hidden), self.down.transpose(1, 2)
        )  # (E, T, D)
        full = weights.new_zeros(tokens.shape[0], self.experts).scatter(1, chosen, weights)
        return (rows * full.T.to(rows.dtype)[..., None]).sum(dim=0)


def balance_loss(importance: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' importance, zero when all are used alike.

    Parameters
    ----------
    importance : Tensor of shape (E,)
        Softmaxed gate probabilities, summed over tokens and rounds.

    Returns
    -------
    Tensor of shape ()
    """
    if importance.numel() == 1:
        return importance.new_zeros(())
    return importance.var() / importance.mean().square()
