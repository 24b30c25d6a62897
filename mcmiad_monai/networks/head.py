"""The reconstruction head: the only part of the method that is trained (§3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.decoder import RecursiveMoEDecoder, initialise_linear_layers
from mcmiad_monai.networks.fusion import CrossModalFusion, FusionMode
from mcmiad_monai.networks.jitter import FeatureJitter
from mcmiad_monai.networks.moe import balance_loss
from mcmiad_monai.networks.text_prior import TextPrior

JitterPosition = Literal["fused", "features"]


class HeadOutput(NamedTuple):
    """What the head hands to the loss and to the score.

    Attributes
    ----------
    target : Tensor of shape (B, C, grid, grid)
        The clean features, standardised if the head standardises.
    reconstruction : Tensor of shape (B, C, grid, grid)
        Their reconstruction.
    balance_loss : Tensor of shape ()
        CV² of the experts' importance over all rounds, summed over the mixtures of a round.
    """

    target: Tensor
    reconstruction: Tensor
    balance_loss: Tensor


class MCMIADHead(nn.Module):
    """Features → projection → text fusion → jitter → decoder → reconstructed features.

    Parameters
    ----------
    in_channels : int
        Channels C of the encoder's feature map.
    stage_channels : sequence of int
        Channels of its stages, in order; they add up to `in_channels`.
    prior : TextPrior or Tensor of shape (P, D_text)
        Embeddings of the normal-anatomy prompts.
    dim, heads, grid, rounds, experts, top_k, hidden, dropout, neighbourhood, ffn_per_round, savings
        The decoder; see `RecursiveMoEDecoder`.
    fusion_mode, use_text_fusion, alpha
        The fusion; see `CrossModalFusion`.
    jitter_scale, jitter_probability
        The jitter; see `FeatureJitter`.
    jitter_position : {"fused", "features"}
        On the fused tokens (§3.4), or on the encoder's features before their projection.
    standardize_features : bool
        Standardise each channel with the statistics given to `set_feature_statistics`.

    Attributes
    ----------
    config : dict
        Fit for JSON; `head_from_config` rebuilds an empty head from it.
    prior_provenance : dict
        What embedded the prompts.

    Raises
    ------
    ValueError
        If an option is not known or the channels do not add up.
    """

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(
        self,
        in_channels: int = 272,
        *,
        prior: TextPrior | Tensor,
        stage_channels: Sequence[int] = (24, 32, 56, 160),
        dim: int = 256,
        heads: int = 8,
        grid: int = 14,
        rounds: int = 4,
        experts: int = 4,
        top_k: int = 2,
        hidden: int = 1024,
        dropout: float = 0.1,
        neighbourhood: int = 7,
        ffn_per_round: int = 1,
        savings: bool = True,
        fusion_mode: FusionMode = "mean",
        use_text_fusion: bool = True,
        alpha: float = 1.0,
        jitter_scale: float = 20.0,
        jitter_probability: float = 1.0,
        jitter_position: JitterPosition = "fused",
        standardize_features: bool = False,
    ) -> None:
        super().__init__()
        if sum(stage_channels) != in_channels:
            raise ValueError(
                f"stage_channels {tuple(stage_channels)} add up to {sum(stage_channels)}, but the "
                f"features have {in_channels} channels; take both from the encoder."
            )
        if jitter_position not in ("fused", "features"):
            raise ValueError(
                f"jitter_position {jitter_position!r} is not known; choose 'fused' or 'features'."
            )
        embeddings = prior.embeddings if isinstance(prior, TextPrior) else prior
        decoder: dict[str, Any] = {
            "grid": grid,
            "dim": dim,
            "heads": heads,
            "rounds": rounds,
            "experts": experts,
            "top_k": top_k,
            "hidden": hidden,
            "dropout": dropout,
            "neighbourhood": neighbourhood,
            "ffn_per_round": ffn_per_round,
            "savings": savings,
        }
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "stage_channels": list(stage_channels),
            "prior_shape": list(embeddings.shape),
            "fusion_mode": fusion_mode,
            "use_text_fusion": use_text_fusion,
            "alpha": alpha,
            "jitter_scale": jitter_scale,
            "jitter_probability": jitter_probability,
            "jitter_position": jitter_position,
            "standardize_features": standardize_features,
            **decoder,
        }
        self.prior_provenance: dict[str, Any] = (
            prior.provenance if isinstance(prior, TextPrior) else {"encoder": "given as a tensor"}
        )
        self.grid, self.stage_channels = grid, tuple(stage_channels)
        self.jitter_position, self.standardize_features = jitter_position, standardize_features
        self.project = nn.Linear(in_channels, dim)
        self.fusion = CrossModalFusion(
            embeddings,
            dim=dim,
            heads=heads,
            mode=fusion_mode,
            use_text_fusion=use_text_fusion,
            alpha=alpha,
        )
        self.jitter = FeatureJitter(jitter_scale, jitter_probability)
        self.decoder = RecursiveMoEDecoder(**decoder)
        self.restore = nn.Linear(dim, in_channels)
        self.register_buffer("channel_mean", torch.zeros(in_channels))
        self.register_buffer("channel_std", torch.ones(in_channels))
        initialise_linear_layers(self)

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store mean and standard deviation, each (C,), of normal training features.

        Raises
        ------
        ValueError
            If a shape is wrong, or a standard deviation is not positive and finite.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.channel_mean.shape or not torch.isfinite(value).all():
                raise ValueError(
                    f"the feature {name} has shape {tuple(value.shape)} or is not finite; "
                    f"{tuple(self.channel_mean.shape)} finite numbers are needed."
                )
        if not (std > 0).all():
            raise ValueError(
                f"{int((std <= 0).sum())} channels have a standard deviation of 0; such a channel "
                "is constant over the training images. Give it a standard deviation of 1."
            )
        self.channel_mean.copy_(mean)
        self.channel_std.copy_(std)

    def forward(self, features: Tensor) -> HeadOutput:
        """Reconstruct features of shape (B, C, grid, grid)."""
        target, restored, importance = self.reconstruct(features)
        return HeadOutput(target, restored, balance_loss(importance))

    def reconstruct(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Target and reconstruction as `forward` gives them, and the experts' importance (M, E).

        All three of a batch follow from those of its parts: the first two lie behind each other,
        and importance adds up.
        """
        self._require(features)
        features = features.to(self.project.weight.dtype)  # kept features are in half precision
        target = self._standardized(features) if self.standardize_features else features
        tokens = target.flatten(2).transpose(1, 2)  # (B, N, C)
        output, importance = self.decoder(self._prepare(tokens))  # (B, N, D)
        restored = self.restore(output)  # (B, N, C)
        return target, restored.transpose(1, 2).unflatten(2, (self.grid, -1)), importance

    def _prepare(self, tokens: Tensor) -> Tensor:
        """Project, fuse and jitter: (B, N, C) → (B, N, D)."""
        if self.jitter_position == "features":
            return self.fusion(self.project(self.jitter(tokens)))
        return self.jitter(self.fusion(self.project(tokens)))

    def _standardized(self, features: Tensor) -> Tensor:
        mean, std = self.channel_mean[:, None, None], self.channel_std[:, None, None]  # (C, 1, 1)
        return (features - mean) / std

    def _require(self, features: Tensor) -> None:
        expected = (self.channel_mean.shape[0], self.grid, self.grid)
        if tuple(features.shape[1:]) != expected:
            raise ValueError(
                f"features have shape {tuple(features.shape)}; (B, {', '.join(map(str, expected))})"
                " is needed. Build the head with the encoder's out_channels and grid."
            )


def build_head(*, seed: int = 0, **options: Any) -> MCMIADHead:
    """Build an `MCMIADHead` from a seed, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MCMIADHead(**options)


def head_from_config(config: dict[str, Any]) -> MCMIADHead:
    """Rebuild a head of `MCMIADHead.config`, for a state dict that is loaded afterwards."""
    options = dict(config)
    prior = torch.zeros(options.pop("prior_shape"))
    stages = tuple(options.pop("stage_channels"))
    return build_head(prior=prior, stage_channels=stages, **options)
