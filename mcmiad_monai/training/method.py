"""Every option of the method, in one value: encoder, head, loss, score and training.

A preset is chosen by one word, and single options are changed by their names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mcmiad_monai.networks.encoder import AUTO, FrozenEncoder, Merge, build_encoder
from mcmiad_monai.networks.head import HeadConfig, MCMIADHead, build_head
from mcmiad_monai.networks.loss import ReconstructionLoss
from mcmiad_monai.networks.memory import DISTANCES, Distance
from mcmiad_monai.networks.score import SOURCES, AnomalyScore, ImageScore, MSEReduction, Terms
from mcmiad_monai.networks.text_prior import TextPrior, encode_hashing, resolve_text_prior
from mcmiad_monai.training.schedule import learning_rate_schedule
from mcmiad_monai.transforms.recipes import View, crops
from mcmiad_monai.transforms.slices import check_context

#: Options of the head that can be chosen. Its channels and grid are those of the encoder, and
#: `top_k` is the K of the score.
HEAD_OPTIONS = HeadConfig.names() - {
    *("in_channels", "stage_channels", "grid", "prior_shape", "top_k")
}


#: Value of the option `score` that leaves it to a choice at the end of the training.
AUTO_SCORE = "auto"


@dataclass(frozen=True, kw_only=True)
class Method:
    """Options of the method; the defaults are the paper's reading.

    Attributes
    ----------
    encoder_name, weights, pool, layers, merge
        See :func:`~mcmiad_monai.networks.encoder.build_encoder` (§3.2, §4.2).
    keep_colours, normalize_images, mask_background : bool
        Of the images; see :func:`~mcmiad_monai.transforms.preprocessing` (§4.2).
    field_of_view : {"whole", "foreground"}
        The whole image (§4.2), or a square around its foreground; see
        :class:`~mcmiad_monai.transforms.FieldOfView`.
    context : {1, 3}
        The slice alone (§3.1), or as the middle one of three channels, between its neighbours.
    align_corners : bool
        Of stages and score map; see `FrozenEncoder`.
    text_prior : str
        See :func:`~mcmiad_monai.networks.text_prior.resolve_text_prior`.
    parts : {"head", "memory", "both"}
        What is trained: the paper's head, a memory of normal tokens, or both.
    score : str
        The maps that a heatmap is made of: ``"head"``, ``"memory-cosine"``, ``"memory-l2"``,
        ``"intensity"``, or several with ``+`` between them; ``"auto"`` chooses at the end of the
        training.
    coreset : int
        Tokens of the memory, of each modality.
    head : mapping
        Options of :class:`~mcmiad_monai.networks.head.HeadConfig` and its decoder that differ from
        their defaults, e.g. ``{"jitter_scale": 5.0}``.
    stage_weights : tuple of float, optional
        Of the encoder's stages, in loss and score; None weights all channels alike.
    balance_weight, cosine_weight : float
        Of the terms of the loss; see :class:`~mcmiad_monai.networks.loss.ReconstructionLoss`.
    score_terms, mse_weight, mse_reduction, top_k
        See :class:`~mcmiad_monai.networks.score.AnomalyScore` (§3.6).
    smooth_sigma, symmetry, image_score
        See there; with ``score: auto``, None leaves them to the choice.
    max_epochs, batch_size, learning_rate, weight_decay, clip_norm
        AdamW's (§4.2).
    schedule : {"cosine", "step", "auto"}
        Of the learning rate; ``"auto"`` trains with each, and keeps what validates better (§4.2).
    min_steps_per_epoch : int
        See :class:`~mcmiad_monai.training.loading.GlobalBatches`.
    copies : int
        Augmented copies of each training slice, for the head alone; see
        :func:`~mcmiad_monai.data.augmentation.augmented_copies`.
    patience : int, optional
        Validations in a row without a better key metric after which the training stops; None never
        stops it. The best epoch is packaged in either case.
    """

    encoder_name: str = AUTO
    weights: str = "pretrained"
    pool: Literal["bilinear", "area"] = "bilinear"
    layers: tuple[int, ...] | None = None
    merge: Merge = "concatenate"
    keep_colours: bool = True
    normalize_images: bool = False
    mask_background: bool = False
    field_of_view: View = "whole"
    context: Literal[1, 3] = 1
    align_corners: bool = True
    text_prior: str = "open_clip"
    parts: Literal["head", "memory", "both"] = "head"
    score: str = "head"
    coreset: int = 5_000
    head: Mapping[str, Any] = field(default_factory=dict)
    stage_weights: tuple[float, ...] | None = None
    balance_weight: float = 0.01
    cosine_weight: float = 0.0
    score_terms: Terms = "both"
    mse_weight: float | None = None
    mse_reduction: MSEReduction = "sum"
    smooth_sigma: float | None = 0.0
    symmetry: float | None = 0.0
    image_score: ImageScore | None = "eq7"
    top_k: float = 5
    max_epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    schedule: Literal["cosine", "step", "auto"] = "auto"
    min_steps_per_epoch: int = 1
    copies: int = 0
    patience: int | None = None

    def __post_init__(self) -> None:
        """Check names and counts before anything is built."""
        _require_known(self.head, HEAD_OPTIONS)
        if self.parts not in ("head", "memory", "both"):
            raise ValueError(f"parts is {self.parts!r}; it must be head, memory or both.")
        possible = self.possible_sources
        if self.score != AUTO_SCORE and not set(self.score.split("+")) <= set(possible):
            raise ValueError(
                f"score is {self.score!r}; with parts {self.parts!r} it is auto, or one or several "
                f"of {', '.join(possible)}, with + between them."
            )
        AnomalyScore(**self.score_options())  # raises where an option is not known
        crops(self.field_of_view)
        check_context(self.context, colours=self.keep_colours)
        if min(self.max_epochs, self.batch_size, self.min_steps_per_epoch) < 1:
            raise ValueError(
                f"max_epochs {self.max_epochs}, batch_size {self.batch_size} and "
                f"min_steps_per_epoch {self.min_steps_per_epoch} must each be at least 1."
            )
        if self.copies < 0 or (self.patience is not None and self.patience < 1):
            raise ValueError(
                f"copies is {self.copies} and patience is {self.patience}; copies must be at least "
                "0, and patience at least 1, or null to train all epochs."
            )

    def with_options(self, **options: Any) -> Method:
        """Another method that differs in these options, those of the head among them.

        Raises
        ------
        ValueError
            If an option is not known; the message has close matches.
        """
        _require_known(options, option_names())
        head = {name: value for name, value in options.items() if name in HEAD_OPTIONS}
        own = {name: value for name, value in options.items() if name not in HEAD_OPTIONS}
        own["head"] = {**self.head, **own.get("head", {}), **head}
        own |= {name: tuple(value) for name, value in own.items() if isinstance(value, list)}
        return replace(self, **own)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    @property
    def trains_head(self) -> bool:
        """Whether there is a head to train."""
        return self.parts != "memory"

    @property
    def chooses_score(self) -> bool:
        """Whether its score, or the units of a sum, are found at the end of the training."""
        return self.score == AUTO_SCORE or "+" in self.score

    @property
    def possible_sources(self) -> list[str]:
        """Maps that a heatmap can be made of; see :data:`~mcmiad_monai.networks.score.SOURCES`."""
        without = {"head": ("memory", "intensity"), "memory": ("head",), "both": ()}[self.parts]
        return [name for name in SOURCES if not name.startswith(without)]

    @property
    def image_options(self) -> dict[str, Any]:
        """Options of the images, for :func:`~mcmiad_monai.transforms.preprocessing`."""
        return {
            "keep_colours": self.keep_colours,
            "normalize_images": self.normalize_images,
            "mask_background": self.mask_background,
            "field_of_view": self.field_of_view,
        }

    def build_encoder(self, **options: Any) -> FrozenEncoder:
        """Encoder with its weights; see :func:`~mcmiad_monai.networks.encoder.build_encoder`."""
        return build_encoder(
            self.encoder_name,
            weights=self.weights,
            pool=self.pool,
            layers=self.layers,
            merge=self.merge,
            align_corners=self.align_corners,
            **options,
        )

    def build_prior(self, prompts: Sequence[str]) -> TextPrior:
        """Text prior of prompts; one that is read from a file brings its own."""
        if not self.trains_head:
            return encode_hashing(prompts)  # nothing reads it
        return resolve_text_prior(self.text_prior, prompts)

    def build_head(self, encoder: FrozenEncoder, prior: TextPrior, seed: int = 0) -> MCMIADHead:
        """Head for the features of an encoder."""
        return build_head(
            seed=seed,
            in_channels=encoder.out_channels,
            stage_channels=encoder.stage_channels,
            grid=encoder.grid,
            prior=prior,
            **self.head,
        )

    def build_loss(self, encoder: FrozenEncoder) -> ReconstructionLoss:
        """Loss over the stages of an encoder."""
        return ReconstructionLoss(
            balance_weight=self.balance_weight,
            cosine_weight=self.cosine_weight,
            stage_weights=self.stage_weights,
            stage_channels=encoder.stage_channels,
        )

    @property
    def memories(self) -> list[Distance]:
        """Distances of the memories that the score is made of, or may be."""
        names = self.possible_sources if self.score == AUTO_SCORE else self.score.split("+")
        return [d for d in DISTANCES if f"memory-{d}" in names]

    def score_options(self) -> dict[str, Any]:
        """Options of the score, without those of the stages.

        What ``score: auto`` is still to choose has the paper's value.
        """
        names = ["head"] if self.score == AUTO_SCORE else self.score.split("+")
        return {
            "terms": self.score_terms,
            "mse_weight": self.mse_weight,
            "mse_reduction": self.mse_reduction,
            "smooth_sigma": self.smooth_sigma or 0.0,
            "symmetry": self.symmetry or 0.0,
            "image_score": self.image_score or "eq7",
            "sources": dict.fromkeys(names, 1.0),
            "align_corners": self.align_corners,
            "top_k": self.top_k,
        }

    def build_score(self, encoder: FrozenEncoder, **options: Any) -> AnomalyScore:
        """Score over the stages of an encoder, with other options if any are given."""
        return AnomalyScore(
            **{**self.score_options(), **options},
            stage_weights=self.stage_weights,
            stage_channels=encoder.stage_channels,
        )

    def build_optimizer(self, parameters: Iterable[Parameter]) -> AdamW:
        """AdamW."""
        return AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def build_schedule(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        """Learning rate by optimiser step, over all epochs; the first of ``"auto"`` is cosine."""
        steps = self.max_epochs * steps_per_epoch
        kind = "cosine" if self.schedule == "auto" else self.schedule
        return learning_rate_schedule(optimizer, kind=kind, total_steps=steps)


#: Options by the word that stands for them. What "default" changes was chosen on the validation
#: patients of real FLAIR (benchmarks/real_images.py).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "default": {
        "keep_colours": False,  # a colour map says nothing that its grey does not
        "normalize_images": True,  # scanners and exports scale their values in many ways
        "mask_background": True,  # heat on air is no finding
        "align_corners": False,  # a cell's centre stays where it is
        "pool": "area",  # averages where bilinear resizing samples, and aliases less
        "head": {"standardize_features": True, "jitter_scale": 5.0},
        "cosine_weight": 5.0,
        "parts": "both",
        "score": AUTO_SCORE,  # no score is best on every set of images
        "smooth_sigma": None,
        "symmetry": None,
        "image_score": None,
        "score_terms": "cos",
        "learning_rate": 1e-3,  # the paper's training sets give tens of thousands of steps
        "schedule": "cosine",
    },
    "moead": {  # as in its code; the score of an image is still Eq. 7
        "text_prior": "hashing",  # not used: there is no text in MoEAD
        "head": {
            "use_text_fusion": False,
            "jitter_position": "features",
            "ffn_per_round": 2,
            "second_ffn": "last",
            "attention_dropout": 0.1,
            "residual_dropout": 0.1,
            "ffn_dropout": 0.1,
            "query_std": 1.0,
            "initialisation": "moead",
            "balance": "logits",
        },
        "score_terms": "mse",
        "mse_reduction": "norm",
        "balance_weight": 0.005,  # of the sum of two mixtures, for 0.01 of their mean
        "max_epochs": 1000,
        "batch_size": 8,
        "schedule": "step",
    },
}


def preset(name: str = "default", **options: Any) -> Method:
    """Method of a preset, with other values for single options; None keeps the preset's value.

    Parameters
    ----------
    name : {"default", "paper", "moead"}
        ``"default"`` is what the bundles use; ``"paper"`` is the paper's reading; ``"moead"`` the
        method whose decoder the paper takes.
    options
        See `Method` and :class:`~mcmiad_monai.networks.head.MCMIADHead`.

    Raises
    ------
    ValueError
        If the preset or an option is not known.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is not known; choose one of {sorted(PRESETS)}.")
    given = {key: value for key, value in options.items() if value is not None}
    return Method(**PRESETS[name]).with_options(**given)


def option_names() -> frozenset[str]:
    """Names of all options."""
    return frozenset(f.name for f in fields(Method)) | HEAD_OPTIONS


def _require_known(given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=2)
            hint = f"Did you mean {' or '.join(close)}? " if close else ""
            raise ValueError(
                f"{name!r} is no option of the method. {hint}There are: {', '.join(sorted(known))}."
            )
