"""Cross-modal fusion (§3.3): the text prior enters the visual tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.attention import attend, join_heads, require_heads, split_heads

FusionMode = Literal["mean", "prompts"]


class CrossModalFusion(nn.Module):
    """X + α · CrossAttn(Q = X, K = V = T), where T is the projected text prior (Eq. 2).

    ``mode="mean"`` is the paper's single mean embedding. The softmax over one key is 1, so that
    every token gets the same vector, and query and key projections would have no gradient: only the
    shared projection is left. ``mode="prompts"`` has one key for each prompt and a learned null
    key, among which the attention chooses.

    Parameters
    ----------
    embeddings : Tensor of shape (P, D_text)
        L2-normalised prompt embeddings.
    dim : int
        Width D of the visual tokens.
    heads : int
        Heads of the ``"prompts"`` attention.
    mode : {"mean", "prompts"}
        See above.
    use_text_fusion : bool
        False replaces the embeddings by zeros of the same size (Table 4) and nothing else.
    alpha : float
        Weight α of the residual; 1 in the paper.

    Raises
    ------
    ValueError
        If `embeddings` has another rank, or `mode` or `heads` does not fit.
    """

    embeddings: Tensor

    def __init__(
        self,
        embeddings: Tensor,
        *,
        dim: int = 256,
        heads: int = 8,
        mode: FusionMode = "mean",
        use_text_fusion: bool = True,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        if embeddings.ndim != 2:
            raise ValueError(
                f"prompt embeddings have shape {tuple(embeddings.shape)}; (P, D_text) is needed."
            )
        if mode not in ("mean", "prompts"):
            raise ValueError(f"fusion mode {mode!r} is not known; choose 'mean' or 'prompts'.")
        require_heads(dim, heads)
        self.heads, self.mode, self.alpha = heads, mode, alpha
        prior = embeddings.detach().clone().float()
        self.register_buffer("embeddings", prior if use_text_fusion else torch.zeros_like(prior))
        # No bias: W is a matrix in §3.3, and a zero prior must leave the tokens as they are.
        self.project = nn.Linear(embeddings.shape[1], dim, bias=False)
        if mode == "prompts":
            self.query = nn.Linear(dim, dim)
            self.out = nn.Linear(dim, dim)
            self.null_key = nn.Parameter(torch.randn(1, dim) * dim**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Fuse the prior into tokens of shape (B, N, D)."""
        added = self._constant() if self.mode == "mean" else self._attended(tokens)
        return tokens + self.alpha * added

    def _constant(self) -> Tensor:
        return self.project(self.embeddings.mean(dim=0))  # (D,)

    def _attended(self, tokens: Tensor) -> Tensor:
        projected = self.project(self.embeddings)  # (P, D)
        text = torch.cat([projected, self.null_key.to(projected.dtype)])[None]  # (1, P + 1, D)
        keys = split_heads(text.expand(tokens.shape[0], -1, -1), self.heads)
        return self.out(join_heads(attend(split_heads(self.query(tokens), self.heads), keys, keys)))
