"""Mixture-of-experts feed-forward network (§3.5): four experts, the best two for each token."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.dropout import DroppingReLU
from mcmiad_monai.networks.tracing import is_compiled, is_written

Dispatch = Literal["auto", "grouped", "ragged", "routed", "dense"]

#: PyTorch's product of groups of rows, each with a matrix of its own; not in its older versions.
grouped_mm = getattr(F, "grouped_mm", None)
#: Compute capability of the oldest GPUs that take it.
OLDEST = (8, 0)
#: Tokens up to which a GPU has all experts computed rather than be told how many tokens each has.
DENSE_TOKENS = 2**13


class Expert(NamedTuple):
    """Weights of one expert, (H, D), (H,), (D, H) and (D,), or of all, (E, H, D) and so on."""

    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class Weights(NamedTuple):
    """Weights of all experts in one, and of each."""

    together: Expert
    each: list[Expert]


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
    dispatch : {"auto", "grouped", "ragged", "routed", "dense"}
        ``"grouped"`` computes chosen experts alone, but its shapes depend on the data.
        ``"ragged"`` does the same with shapes that do not, so that a GPU need not be waited for.
        ``"routed"`` does it in operations that an exported graph can hold. ``"dense"`` computes
        all experts with fixed shapes. ``"auto"`` is routed where a graph is exported or traced; on
        a GPU dense for few tokens, and ragged for many in bfloat16; otherwise grouped, and dense
        where a graph is compiled. The numbers are the same.

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
        self.activation = DroppingReLU(dropout)
        for expert in range(experts):
            nn.init.xavier_uniform_(self.up.data[expert])
            nn.init.xavier_uniform_(self.down.data[expert])

    def split(self) -> Weights:
        """Weights for all calls of `forward` until they change.

        They are in the type of autocast's products, so that they are converted once and not for
        each call.
        """
        kind, dtype = self.up.device.type, self.up.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        stacked: tuple[Tensor, ...] = (self.up, self.up_bias, self.down, self.down_bias)
        if not torch.is_grad_enabled():  # views would say that they need one all the same
            stacked = tuple(p.detach() for p in stacked)
        together = Expert(*(p.to(dtype) for p in stacked))
        # unbound at once: the gradient of one expert's weights would come padded with zeros
        parts = zip(*(p.unbind() for p in together), strict=True)
        return Weights(together, [Expert(*own) for own in parts])

    def forward(self, tokens: Tensor, experts: Weights | None = None) -> tuple[Tensor, Tensor]:
        """Send each token through its experts.

        Parameters
        ----------
        tokens : Tensor of shape (B, N, D)
        experts : Weights, optional
            What `split` returned, for several calls with the same weights.

        Returns
        -------
        output : Tensor of shape (B, N, D)
        importance : Tensor of shape (E,)
            Sum over the tokens of the gate's probabilities over all experts, in float32.
        """
        own = self.split() if experts is None else experts
        logits = self.gate(tokens).float()  # (B, N, E)
        best, chosen = logits.topk(self.top_k, dim=-1)  # (B, N, k)
        weights = best.softmax(dim=-1)  # (B, N, k)
        routes = tokens.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)
        forms = {
            "dense": self._dense,
            "grouped": self._grouped,
            "ragged": self._ragged,
            "routed": self._routed,
        }
        form = self._form(routes[0].shape[0], tokens.device, own.together.up.dtype)
        flat = forms[form](*routes, own)  # (T, D)
        importance = logits.softmax(dim=-1).sum(dim=(0, 1))  # (E,)
        return flat.view_as(tokens), importance

    def has_fixed_shapes(self, tokens: int, dtype: torch.dtype) -> bool:
        """Whether no shape depends on the data, for so many tokens and products of this type."""
        return self._form(tokens, self.up.device, dtype) != "grouped"

    def _form(self, tokens: int, device: torch.device, dtype: torch.dtype) -> Dispatch:
        if self.dispatch != "auto":
            return self.dispatch
        if is_written():
            return "routed"
        if device.type == "cuda":
            if tokens <= DENSE_TOKENS:
                return "dense"
            if dtype == torch.bfloat16 and self._groups_fit(device):
                return "ragged"
        return "dense" if is_compiled() else "grouped"

    def _groups_fit(self, device: torch.device) -> bool:
        """Whether a GPU takes grouped products of these weights, whose rows are whole 16 bytes."""
        rows_fit = not any(width % 8 for width in self.up.shape[1:])
        able = grouped_mm is not None and torch.cuda.get_device_capability(device) >= OLDEST
        return able and rows_fit

    def _grouped(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Weights) -> Tensor:
        """Sort the (token, expert) pairs by expert and run each expert on its own rows."""
        order = chosen.flatten().argsort(stable=True)  # (T·k,)
        inverse = order.argsort()
        sizes = chosen.flatten().bincount(minlength=self.experts).tolist()
        groups = _Gather.apply(tokens, order, inverse, self.top_k).split(sizes)
        rows = torch.cat(self._run_experts(groups, experts.each))  # (T·k, D)
        back = _Gather.apply(rows, inverse, order, 1).view(*chosen.shape, -1)  # (T, k, D)
        return _sum_copies(back * weights.to(back.dtype)[..., None])

    def _ragged(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Weights) -> Tensor:
        """Sort as `_grouped` does, and leave it to the products where each expert's rows end."""
        if grouped_mm is None:
            raise RuntimeError("this PyTorch has no grouped products; choose another dispatch.")
        own, flat = experts.together, chosen.flatten()  # (T·k,)
        place = torch.arange(flat.shape[0], device=flat.device)  # (T·k,)
        picked = flat == place[: self.experts, None]  # (E, T·k)
        rank = picked.cumsum(dim=1)  # (E, T·k); of a row among its expert's, from 1
        ends = rank[:, -1].cumsum(dim=0)  # (E,)
        starts = ends - rank[:, -1]
        # a sort would take several passes over the rows
        inverse = (picked * (rank + starts[:, None])).sum(dim=0) - 1  # (T·k,)
        order = torch.empty_like(inverse).scatter(0, inverse, place)
        member = (place[:, None] >= starts) & (place[:, None] < ends)  # (T·k, E), of sorted rows
        rows = _Gather.apply(tokens.to(own.up.dtype), order, inverse, self.top_k)  # (T·k, D)
        hidden = grouped_mm(rows, own.up.transpose(1, 2), offs=ends.int())  # (T·k, H)
        # a bias comes as a product too, whose gradient is one, and no sum row by row
        hidden = torch.addmm(hidden, member.to(hidden.dtype), own.up_bias)
        found = grouped_mm(self.activation(hidden), own.down.transpose(1, 2), offs=ends.int())
        back = _Gather.apply(found, inverse, order, 1).view(*chosen.shape, -1)  # (T, k, D)
        mixed = _sum_copies(back * weights.to(back.dtype)[..., None])
        return torch.addmm(mixed, self._gates(weights, chosen).to(mixed.dtype), own.down_bias)

    def _routed(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Weights) -> Tensor:
        """Gather the rows of each expert, whose number the graph leaves open, and scatter back."""
        flat = chosen.flatten()  # (T·k,)
        places = [(flat == e).nonzero().flatten() for e in range(self.experts)]
        rows = self._run_experts([tokens[place // self.top_k] for place in places], experts.each)
        empty = tokens.new_zeros(flat.shape[0], tokens.shape[1])
        back = empty.index_put((torch.cat(places),), torch.cat(rows).to(empty.dtype))
        return _sum_copies(back.view(*chosen.shape, -1) * weights.to(back.dtype)[..., None])

    def _run_experts(self, groups: Sequence[Tensor], experts: Sequence[Expert]) -> list[Tensor]:
        """Each expert on its own rows."""
        return [
            F.linear(self.activation(F.linear(rows, own.up, own.up_bias)), own.down, own.down_bias)
            for rows, own in zip(groups, experts, strict=True)
        ]

    def _dense(self, tokens: Tensor, weights: Tensor, chosen: Tensor, experts: Weights) -> Tensor:
        """Run every expert on every token; experts that a token did not choose weigh zero.

        All experts are one wide layer, whose hidden units the gate weighs.
        """
        own = experts.together
        gates = self._gates(weights, chosen).to(own.up.dtype)  # (T, E)
        wide = F.linear(tokens, own.up.flatten(0, 1), own.up_bias.flatten())  # (T, E·H)
        hidden = self.activation(wide).unflatten(1, (self.experts, -1))
        weighed = hidden * gates[..., None]  # (T, E, H)
        down = own.down.transpose(0, 1).flatten(1)  # (D, E·H)
        return F.linear(weighed.flatten(1), down) + F.linear(gates, own.down_bias.T)

    def _gates(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """Weight of every expert (T, E), zero of those that a token did not choose."""
        return weights.new_zeros(weights.shape[0], self.experts).scatter(1, chosen, weights)


class _Gather(torch.autograd.Function):
    """Rows (R, D) → (R·k, D), where row i of the output is row order[i] // k of the input.

    `order` is a permutation, so that the gradient is a gather too, and a sum over the k copies of
    a row; PyTorch's own is for any index and adds up row by row.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return rows.index_select(0, order // copies)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        found = gradient.index_select(0, inverse)
        return _sum_copies(found.unflatten(0, (-1, ctx.copies))), None, None, None


def _sum_copies(rows: Tensor) -> Tensor:
    """Sum over the middle of (T, k, D); PyTorch's own sum is slow there in bfloat16."""
    return functools.reduce(torch.add, rows.unbind(1))


def balance_loss(importance: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' importance, zero when all are used alike.

    Parameters
    ----------
    importance : Tensor of shape (E,) or (M, E)
        Softmaxed gate probabilities, summed over tokens and rounds; a row for each mixture.

    Returns
    -------
    Tensor of shape ()
        Summed over the mixtures.
    """
    if importance.shape[-1] == 1:
        return importance.new_zeros(())
    return (importance.var(dim=-1) / importance.mean(dim=-1).square()).sum()
