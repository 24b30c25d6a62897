"""Multi-head attention with reusable keys and values, and the mask of blocked neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeysValues(NamedTuple):
    """Projected keys and values, each of shape (B, heads, M, D / heads)."""

    keys: Tensor
    values: Tensor


class MultiHeadAttention(nn.Module):
    """Multi-head attention in two steps, so that keys and values can be projected once only.

    Parameters
    ----------
    dim : int
        Width D of the tokens.
    heads : int
        Number of heads; must divide `dim`.
    dropout : float
        Of the attention weights, in training.

    Raises
    ------
    ValueError
        If `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        require_heads(dim, heads)
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def project(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Project keys and values, each (B, M, D), for one or more calls of `forward`."""
        return KeysValues(
            split_heads(self.key(keys), self.heads),  # (B, heads, M, D / heads)
            split_heads(self.value(values), self.heads),
        )

    def forward(self, queries: Tensor, memory: KeysValues, allowed: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        queries : Tensor of shape (B or 1, N, D)
            A batch of one serves every sample of `memory`, and is projected once.
        memory : KeysValues
            What `project` returned.
        allowed : Tensor of shape (N, M), bool, optional
            True where a query may attend to a key.

        Returns
        -------
        Tensor of shape (B, N, D)
        """
        query = split_heads(self.query(queries), self.heads)  # (B or 1, heads, N, D / heads)
        query = query.expand(memory.keys.shape[0], -1, -1, -1)  # (B, heads, N, D / heads)
        attended = attend(query, *memory, allowed, dropout=self.dropout if self.training else 0.0)
        return self.out(join_heads(attended))  # (B, N, D)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None = None,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention by the faster of two equal forms.

    The fused kernel is faster except in two cases, where product, softmax and product are written
    out: in half precision on a CPU, where its backward is slow for as few as 196 tokens; and in an
    exported graph, where it would add a search for queries without any key.

    Parameters
    ----------
    query : Tensor of shape (B, heads, N, d)
    key, value : Tensor of shape (B, heads, M, d)
    allowed : Tensor of shape (N, M), bool, optional
    dropout : float
        Of the attention weights.

    Returns
    -------
    Tensor of shape (B, heads, N, d)
    """
    half_on_cpu = query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)
    # some versions of PyTorch say that they export while they compile
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    if half_on_cpu or exporting or torch.jit.is_tracing():  # type: ignore[attr-defined]
        weights = attention_weights(query, key, allowed).to(value.dtype)  # (B, heads, N, M)
        return (F.dropout(weights, dropout) if dropout else weights) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)


def attention_weights(query: Tensor, key: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax of the scaled products: (B, heads, N, d), (B, heads, M, d) → (B, heads, N, M)."""
    query = query * query.shape[-1] ** -0.5
    if allowed is None:
        return (query @ key.transpose(-2, -1)).softmax(dim=-1)
    # the product starts from the mask, which saves a pass over the scores in each direction
    blocked = query.new_zeros(allowed.shape).masked_fill(~allowed, float("-inf"))  # (N, M)
    flat = query.flatten(0, 1), key.flatten(0, 1).transpose(-2, -1)
    scores = torch.baddbmm(blocked.expand(flat[0].shape[0], -1, -1), *flat)  # (B·heads, N, M)
    return scores.softmax(dim=-1).unflatten(0, query.shape[:2])


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, D) → (B, heads, N, D / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """(B, heads, N, d) → (B, N, heads · d)."""
    return tokens.transpose(1, 2).flatten(2)


def neighbourhood_blocked(grid: int, size: int) -> Tensor:
    """Mask of the keys in the window around the position of each query, itself included.

    Parameters
    ----------
    grid : int
        Tokens a side; token = row · grid + column.
    size : int
        Odd side of the window in tokens; 7 in the paper (§3.5). 0 blocks nothing.

    Returns
    -------
    Tensor of shape (grid², grid²), bool
        True where a key is blocked: at 14 and 7, 16 (a corner) to 49 of 196 keys.

    Raises
    ------
    ValueError
        If `size` is even, or so large that a query has no key left.
    """
    if size and size % 2 == 0:
        raise ValueError(f"a neighbourhood of {size} tokens has no centre; choose an odd size.")
    if size // 2 >= grid // 2 and size:
        raise ValueError(
            f"a neighbourhood of {size} covers all of the {grid}×{grid} grid seen from its "
            f"centre, so no key is left; choose at most {max(2 * (grid // 2) - 1, 0)}, or 0."
        )
    place = torch.arange(grid)
    near = (place[:, None] - place[None, :]).abs() * 2 < size  # (grid, grid)
    return (near[:, None, :, None] & near[None, :, None, :]).reshape(grid**2, grid**2)


def require_heads(dim: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the width."""
    if dim % heads:
        raise ValueError(f"{heads} heads do not divide a width of {dim}; choose a divisor.")
