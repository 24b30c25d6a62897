"""The reconstruction head: the only part of the method that is trained (§3.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.decoder import (
    DecoderConfig,
    RecursiveMoEDecoder,
    initialise_as_moead,
    initialise_linear_layers,
)
from mcmiad_monai.networks.fusion import CrossModalFusion, FusionMode
from mcmiad_monai.networks.jitter import FeatureJitter
from mcmiad_monai.networks.moe import balance_loss
from mcmiad_monai.networks.text_prior import TextPrior

JitterPosition = Literal["fused", "features"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Options of the head; the defaults are the paper's.

    Attributes
    ----------
    in_channels : int
        Channels C of the encoder's feature map.
    stage_channels : tuple of int
        Channels of its stages, in order; their sum is `in_channels`.
    prior_shape : tuple of int
        Number of prompts and size of their embeddings; the head takes them from its prior.
    fusion_mode, use_text_fusion, alpha
        The fusion; see `CrossModalFusion`.
    jitter_scale, jitter_probability
        The jitter; see `FeatureJitter`.
    jitter_position : {"fused", "features"}
        On the fused tokens (§3.4), or on the encoder's features before their projection.
    standardize_features : bool
        Standardise each channel with the statistics given to `MCMIADHead.set_feature_statistics`.
    decoder : DecoderConfig

    Raises
    ------
    ValueError
        If `jitter_position` is not known or the channels do not add up.
    """

    in_channels: int = 272
    stage_channels: tuple[int, ...] = (24, 32, 56, 160)
    prior_shape: tuple[int, ...] = (15, 512)
    fusion_mode: FusionMode = "mean"
    use_text_fusion: bool = True
    alpha: float = 1.0
    jitter_scale: float = 20.0
    jitter_probability: float = 1.0
    jitter_position: JitterPosition = "fused"
    standardize_features: bool = False
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        if sum(self.stage_channels) != self.in_channels:
            raise ValueError(
                f"stage_channels {self.stage_channels} add up to {sum(self.stage_channels)}, but "
                f"the features have {self.in_channels} channels; take both from the encoder."
            )
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {self.alpha}; a finite number is needed.")
        if self.jitter_position not in ("fused", "features"):
            raise ValueError(
                f"jitter_position {self.jitter_position!r} is not known; choose 'fused' or "
                "'features'."
            )

    @classmethod
    def names(cls) -> frozenset[str]:
        """Names of all options of head and decoder."""
        own = {f.name for f in fields(cls)} - {"decoder"}
        return frozenset(own | {f.name for f in fields(DecoderConfig)})

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> HeadConfig:
        """Build from options by name.

        Parameters
        ----------
        options : mapping
            Options of the decoder are beside those of the head, or in a mapping ``"decoder"`` as
            `dataclasses.asdict` writes them.

        Raises
        ------
        ValueError
            If an option is not known or out of range.
        """
        flat = {**options.get("decoder", {}), **options}
        flat.pop("decoder", None)
        if unknown := sorted(set(flat) - cls.names()):
            raise ValueError(
                f"{unknown} are no options of the head; they are {sorted(cls.names())}."
            )
        for name in {"stage_channels", "prior_shape"} & set(flat):  # lists in JSON and YAML
            flat[name] = tuple(flat[name])
        of_decoder = {f.name for f in fields(DecoderConfig)} & set(flat)
        decoder = DecoderConfig(**{name: flat.pop(name) for name in of_decoder})
        return cls(**flat, decoder=decoder)


class HeadOutput(NamedTuple):
    """What the head passes to the loss and to the score.

    Attributes
    ----------
    target : Tensor of shape (B, C, grid, grid)
        The clean features, standardised if the head standardises.
    reconstruction : Tensor of shape (B, C, grid, grid)
        Their reconstruction.
    balance_loss : Tensor of shape ()
        CV² of the experts' importance, summed over the mixtures of a round; of which rounds, says
        the option `balance` of the decoder.
    """

    target: Tensor
    reconstruction: Tensor
    balance_loss: Tensor


class MCMIADHead(nn.Module):
    """Features → projection → text fusion → jitter → decoder → reconstructed features.

    Parameters
    ----------
    options : HeadConfig
    prior : TextPrior or Tensor of shape (P, D_text)
        Embeddings of the normal-anatomy prompts.

    Attributes
    ----------
    options : HeadConfig
        With the shape of this prior.
    prior_provenance : dict
        What embedded the prompts.
    """

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self, options: HeadConfig, *, prior: TextPrior | Tensor) -> None:
        super().__init__()
        embeddings = prior.embeddings if isinstance(prior, TextPrior) else prior  # (P, D_text)
        self.prior_provenance: dict[str, Any] = (
            prior.provenance if isinstance(prior, TextPrior) else {"encoder": "given as a tensor"}
        )
        self.options = replace(options, prior_shape=tuple(embeddings.shape))
        channels, decoder = options.in_channels, options.decoder
        self.project = nn.Linear(channels, decoder.dim)
        self.fusion = CrossModalFusion(
            embeddings,
            dim=decoder.dim,
            heads=decoder.heads,
            mode=options.fusion_mode,
            use_text_fusion=options.use_text_fusion,
            alpha=options.alpha,
        )
        self.jitter = FeatureJitter(options.jitter_scale, options.jitter_probability)
        self.decoder = RecursiveMoEDecoder(decoder)
        self.restore = nn.Linear(decoder.dim, channels)
        self.register_buffer("channel_mean", torch.zeros(channels))
        self.register_buffer("channel_std", torch.ones(channels))
        initialise_linear_layers(self)
        if decoder.initialisation == "moead":
            initialise_as_moead(self.decoder)

    @property
    def config(self) -> dict[str, Any]:
        """The options, fit for JSON; `head_from_config` rebuilds an empty head from them."""
        return asdict(self.options)

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
        self._require(features)
        features = features.to(self.project.weight.dtype)  # cached features are in half precision
        target = self._standardized(features) if self.options.standardize_features else features
        tokens = target.flatten(2).transpose(1, 2)  # (B, N, C)
        output, importance = self.decoder(self._prepare(tokens))  # (B, N, D), (M, E)
        restored = self.restore(output).transpose(1, 2)  # (B, C, N)
        restored = restored.unflatten(2, (self.options.decoder.grid, -1))  # (B, C, grid, grid)
        return HeadOutput(target, restored, balance_loss(importance))

    def _prepare(self, tokens: Tensor) -> Tensor:
        """Project, fuse and jitter: (B, N, C) → (B, N, D)."""
        if self.options.jitter_position == "features":
            return self.fusion(self.project(self.jitter(tokens)))
        return self.jitter(self.fusion(self.project(tokens)))

    def _standardized(self, features: Tensor) -> Tensor:
        mean, std = self.channel_mean[:, None, None], self.channel_std[:, None, None]  # (C, 1, 1)
        return (features - mean) / std

    def _require(self, features: Tensor) -> None:
        grid = self.options.decoder.grid
        expected = (self.options.in_channels, grid, grid)
        if tuple(features.shape[1:]) != expected:
            raise ValueError(
                f"features have shape {tuple(features.shape)}; (B, {', '.join(map(str, expected))})"
                " is needed. Build the head with the encoder's out_channels and grid."
            )


def build_head(*, seed: int = 0, prior: TextPrior | Tensor, **options: Any) -> MCMIADHead:
    """Build an `MCMIADHead` from a seed, leaving the global random state as it was.

    Parameters
    ----------
    seed : int
        Seed of the initial weights.
    prior : TextPrior or Tensor of shape (P, D_text)
    options
        Of `HeadConfig` and `DecoderConfig`, by name.

    Raises
    ------
    ValueError
        If an option is not known or out of range.
    """
    config = HeadConfig.from_options(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MCMIADHead(config, prior=prior)


def head_from_config(config: Mapping[str, Any]) -> MCMIADHead:
    """Rebuild a head from `MCMIADHead.config`, for a state dict that is loaded afterwards.

    Earlier versions wrote all options into one flat dict, which is read too.
    """
    return build_head(prior=torch.zeros(*config["prior_shape"]), **config)
