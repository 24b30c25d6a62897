"""Every option of the method that an experiment can vary, in one value."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.head import MCMIADHead, build_head
from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import TextPrior

#: Scoring options that every experiment reports; none needs another training.
SCORES: dict[str, dict[str, Any]] = {
    "S_MSE + S_cos (Eq. 6)": {},
    "0.7 S_MSE + 0.3 S_cos": {"mse_weight": 0.7},
    "0.7 mean S_MSE + 0.3 S_cos": {"mse_weight": 0.7, "mse_reduction": "mean"},
    "S_MSE": {"terms": "mse"},
    "S_cos": {"terms": "cos"},
    "S_cos, smoothed": {"terms": "cos", "smooth_sigma": 4.0},
}


#: Options in which the bundles differ from the paper's reading; chosen on validation patients, see
#: benchmarks/flair_lgg.py.
SHIPPED: dict[str, Any] = {
    "pool": "area",
    "standardize_features": True,
    "cosine_weight": 5.0,
    "learning_rate": 1e-3,
    "score": "S_cos",
}
SHIPPED_HEAD: dict[str, Any] = {"jitter_scale": 5.0}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Encoder, head and training; the defaults are the paper's reading.

    Attributes
    ----------
    encoder, weights, pool
        See :func:`~mcmiad_monai.networks.encoder.build_encoder`.
    text_prior : str
        See :func:`~mcmiad_monai.networks.text_prior.resolve_text_prior`.
    standardize_features : bool
        Standardise each channel by its statistics over the training images.
    stage_weights : tuple of float, optional
        Of the encoder's stages, in loss and score.
    cosine_weight : float
        Of the cosine term of the loss.
    head : dict
        Further options of :class:`~mcmiad_monai.networks.head.MCMIADHead`.
    epochs, batch_size, learning_rate, schedule
        AdamW's (§4.2).
    min_steps_per_epoch : int
        Training sets of a few images are drawn from with replacement until an epoch has this many
        steps: one image alone would otherwise give a hundred steps in a hundred epochs.
    score : str
        Name in :data:`SCORES` of the score that the tables show.
    """

    encoder: str = "tf_efficientnet_b4.aa_in1k"
    weights: str = "pretrained"
    pool: Literal["bilinear", "area"] = "bilinear"
    text_prior: str = "open_clip"
    standardize_features: bool = False
    stage_weights: tuple[float, ...] | None = None
    cosine_weight: float = 0.0
    head: dict[str, Any] = field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 2e-4
    schedule: Literal["cosine", "step"] = "cosine"
    min_steps_per_epoch: int = 10
    score: str = "S_MSE + S_cos (Eq. 6)"

    def __post_init__(self) -> None:
        """Check what a name can get wrong."""
        if self.score not in SCORES:
            raise ValueError(f"score {self.score!r} is not known; choose one of {list(SCORES)}.")
        if min(self.epochs, self.batch_size, self.min_steps_per_epoch) < 1:
            raise ValueError(
                f"epochs {self.epochs}, batch_size {self.batch_size} and min_steps_per_epoch "
                f"{self.min_steps_per_epoch} must each be at least 1."
            )

    def with_options(self, **options: Any) -> Method:
        """Another method, that differs in these options.

        Raises
        ------
        ValueError
            If an option is not known.
        """
        known = {f.name for f in fields(self)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"{unknown} are no options of a method; they are {sorted(known)}.")
        if isinstance(options.get("stage_weights"), list):
            options["stage_weights"] = tuple(options["stage_weights"])
        return replace(self, **options)

    def with_head(self, **options: Any) -> Method:
        """Another method, whose head differs in these options."""
        return replace(self, head={**self.head, **options})

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    def build_head(self, encoder: FrozenEncoder, prior: TextPrior, seed: int) -> MCMIADHead:
        """Head for an encoder.

        Raises
        ------
        ValueError
            If an option of the head is not known or out of range.
        """
        known = set(inspect.signature(MCMIADHead.__init__).parameters) - {"self", "prior"}
        unknown = sorted(set(self.head) - known)
        if unknown:
            raise ValueError(f"{unknown} are no options of the head; they are {sorted(known)}.")
        return build_head(
            seed=seed,
            in_channels=encoder.out_channels,
            stage_channels=encoder.stage_channels,
            grid=encoder.grid,
            prior=prior,
            standardize_features=self.standardize_features,
            **self.head,
        )

    def build_loss(self, encoder: FrozenEncoder) -> ReconstructionLoss:
        """Loss over an encoder's stages."""
        return ReconstructionLoss(
            cosine_weight=self.cosine_weight,
            stage_weights=self.stage_weights,
            stage_channels=encoder.stage_channels,
        )

    def build_score(self, encoder: FrozenEncoder, name: str | None = None) -> AnomalyScore:
        """Score over an encoder's stages; the method's own, unless another is named."""
        return AnomalyScore(
            **SCORES[name or self.score],
            stage_weights=self.stage_weights,
            stage_channels=encoder.stage_channels,
        )
