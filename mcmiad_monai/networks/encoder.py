"""Building frozen encoders (§3.2): of a hub, a package or a file, one or several together."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcmiad_monai.networks.ensemble import JOIN, EnsembleEncoder, member_weights
from mcmiad_monai.networks.frozen import FrozenEncoder, Pool
from mcmiad_monai.networks.packaged import DEFAULT_PACKAGED, packaged_file, packaged_model
from mcmiad_monai.networks.trunks import (
    OPEN_CLIP_PREFIX,
    TOWER_SIZE,
    Merge,
    Selection,
    Trunk,
    TrunkConfig,
    empty_tower,
    open_clip_trunk,
    timm_hub_file,
    timm_trunk,
)
from mcmiad_monai.networks.weights import read_state_dict, require_file

__all__ = [
    "AUTO",
    "DEFAULT_ENCODER",
    "FrozenEncoder",
    "Merge",
    "Pool",
    "build_encoder",
    "calibrate_batchnorm",
    "empty_encoder",
    "encoder_from_config",
    "untrained_norms",
]

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "tf_efficientnet_b4.aa_in1k"
"""EfficientNet-B4 (§4.2), with the ImageNet weights that UniAD and MoEAD use."""

AUTO = "auto"
"""Name of the encoder that goes with the weights: the default one, or that of packaged weights."""


def build_encoder(
    name: str = AUTO,
    *,
    weights: str | Path = "pretrained",
    pool: Pool = "bilinear",
    grid: int = 14,
    align_corners: bool = False,
    layers: Sequence[int] | None = None,
    merge: Merge = "concatenate",
    seed: int = 0,
    sha256: str | None = None,
) -> FrozenEncoder:
    """Build the encoder with weights of a hub, a package or a file, or random ones with a warning.

    Parameters
    ----------
    name : str
        A timm model, or ``"open_clip:MODEL"`` / ``"open_clip:MODEL/PRETRAINED"`` for the visual
        tower of OpenCLIP (pretrained ``openai`` unless named). ``"auto"`` is EfficientNet-B4, or
        ``tf_efficientnet_lite0`` if the weights are packaged. Several joined by ``+`` are an
        ensemble, which has the features of all of them.
    weights : str or Path
        ``"pretrained"`` (the hub of timm or OpenCLIP), ``"packaged"`` (ImageNet, from the Python
        package of ``tf_efficientnet_lite0``, ``1`` or ``2``), the path of a safetensors file or
        torch checkpoint, or ``"random"`` (for tests and trials: worth nothing on real images).
        Of an ensemble one of these words for all, or one for each joined by ``+``; a ``+`` in the
        path of an existing file is part of it.
    pool, grid, align_corners
        See `FrozenEncoder`.
    layers : sequence of int, optional
        Blocks of a vision transformer whose patch tokens are used, counted from 0 as timm's
        ``forward_intermediates`` does, each after the final norm; negative ones count from the
        last. By default the last block. A pyramid always gives all its strides up to 16. Of an
        ensemble, for the vision transformers in it.
    merge : {"concatenate", "average"}
        What is done with the tokens of several layers.
    seed : int
        Seed of random weights.
    sha256 : str, optional
        Expected digest of the weights file; of an ensemble one for each joined by ``+``.

    Raises
    ------
    WeightsError
        If the weights are not available or do not fit. There is no fallback to random weights.
    ValueError
        If the model is not known, or has no such layers.
    """
    names = name.split(JOIN)
    sources = member_weights(str(weights), len(names))
    digests = [None] * len(names) if sha256 is None else sha256.split(JOIN)
    if len(digests) != len(names):
        raise ValueError(
            f"sha256 has {len(digests)} digests, and the encoder {name} has {len(names)} members; "
            f"give one for each, joined by {JOIN!r}."
        )
    members = []
    for given, source, digest in zip(names, sources, digests, strict=True):
        packaged = source == "packaged"
        own = given if given != AUTO else DEFAULT_PACKAGED if packaged else DEFAULT_ENCODER
        if source == "random":
            message = (
                f"the encoder {own} has RANDOM weights (seed {seed}): it is good for trying the "
                "software, and its heatmaps are worth nothing on real images."
            )
            warnings.warn(message, stacklevel=2)
            logger.warning(message)
        members.append((own, source, digest))
    options: dict[str, Any] = {"pool": pool, "grid": grid, "align_corners": align_corners}
    return _assembled(members, Selection(blocks=layers, merge=merge), seed, options)


def empty_encoder(
    name: str = DEFAULT_ENCODER,
    *,
    pool: Pool = "bilinear",
    grid: int = 14,
    align_corners: bool = False,
    layers: Sequence[int] | None = None,
    merge: Merge = "concatenate",
    seed: int = 0,
) -> FrozenEncoder:
    """Build an encoder with random weights and no warning, to count its size or to load weights."""
    members = [(own, "random", None) for own in name.split(JOIN)]
    options: dict[str, Any] = {"pool": pool, "grid": grid, "align_corners": align_corners}
    return _assembled(members, Selection(blocks=layers, merge=merge), seed, options)


def encoder_from_config(config: dict[str, Any]) -> FrozenEncoder:
    """Rebuild an encoder of `FrozenEncoder.config`, for a state dict that is loaded afterwards."""
    if "members" in config:
        return EnsembleEncoder([encoder_from_config(member) for member in config["members"]])
    trunk = TrunkConfig.from_dict(config["trunk"])
    taken = Selection(trunk.indices, trunk.indices, trunk.merge)
    with torch.random.fork_rng(devices=[]):
        if trunk.tower:
            tower_config = json.loads(trunk.tower)
            tower = empty_tower(tower_config)
            built = open_clip_trunk(trunk.name, taken, tower, tower_config)
        else:
            built = timm_trunk(trunk.name, taken, None, "")
    options = {name: config[name] for name in ("pool", "grid", "align_corners") if name in config}
    return FrozenEncoder(built, **options)


def calibrate_batchnorm(encoder: FrozenEncoder, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of BatchNorms with random weights to the average over images.

    Pretrained weights have statistics, which stay. The provenance of each member with random
    weights gets the number of images and a new digest.

    Parameters
    ----------
    encoder : FrozenEncoder
    batches : iterable of Tensor of shape (B, 1 or 3, H, W)
        Normal training images in [0, 1].

    Raises
    ------
    ValueError
        If there is no such BatchNorm or there are no images.
    """
    norms = untrained_norms(encoder)
    if not norms:
        raise ValueError(
            f"{encoder.provenance['name']} has no BatchNorm to calibrate: only those with random "
            "weights are."
        )
    layers = [layer for found in norms.values() for layer in found]
    momenta = [layer.momentum for layer in layers]
    count = 0
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.training = True
        for batch in batches:
            with torch.no_grad():
                encoder(batch.to(encoder.device))
            count += len(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum, layer.training = momentum, False
    if count == 0:
        raise ValueError("there were no images to calibrate BatchNorm on; give at least one batch.")
    for member in norms:
        member.provenance["batchnorm"] = f"calibrated on {count} images"
        member.update_digest()


def untrained_norms(encoder: FrozenEncoder) -> dict[FrozenEncoder, list[_BatchNorm]]:
    """BatchNorms of the members with random weights, which have no statistics of images."""
    norms = {
        member: [layer for layer in member.modules() if isinstance(layer, _BatchNorm)]
        for member in encoder.members
        if str(member.provenance.get("weights")).startswith("random")
    }
    return {member: found for member, found in norms.items() if found}


def _assembled(
    members: Sequence[tuple[str, str, str | None]],
    taken: Selection,
    seed: int,
    options: dict[str, Any],
) -> FrozenEncoder:
    """One encoder, or an ensemble, of members' names, weights and digests."""
    built = []
    for name, weights, sha256 in members:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            make = _open_clip_trunk if name.startswith(OPEN_CLIP_PREFIX) else _timm_trunk
            trunk, source = make(name, weights, taken, sha256)
        if weights == "random":
            source = {"weights": f"random, seed {seed}"}
        built.append(FrozenEncoder(trunk, **options, provenance=source))
    if taken.of_blocks and not any(member.trunk.config.plain for member in built):
        raise ValueError(
            f"layers {taken.blocks} and merge {taken.merge!r} are of the blocks of a vision "
            f"transformer, and {JOIN.join(name for name, _, _ in members)} has stages of several "
            "sizes, all of which are used. Leave both options out, or name a vision transformer "
            "such as vit_small_patch14_dinov2."
        )
    return built[0] if len(built) == 1 else EnsembleEncoder(built)


def _timm_trunk(
    name: str, weights: str, taken: Selection, sha256: str | None
) -> tuple[Trunk, dict[str, Any]]:
    if weights == "random":
        return timm_trunk(name, taken, None, ""), {}
    if weights == "packaged":
        package, digest = packaged_model(name)
        path, version = packaged_file(package)
        source, sha256 = f"package: {package} {version}", sha256 or digest
    elif weights == "pretrained":
        path, source = timm_hub_file(name), f"timm hub: {name}"
    else:
        path, source = Path(weights), "file"
    state = read_state_dict(path, sha256=sha256)
    provenance = {"weights": source, "file": path.name, "file_sha256": require_file(path)}
    in_order = weights == "packaged"
    return timm_trunk(name, taken, state, str(path), in_order=in_order), provenance


def _open_clip_trunk(
    name: str, weights: str, taken: Selection, sha256: str | None
) -> tuple[Trunk, dict[str, Any]]:
    from mcmiad_monai.networks.clip import load_clip, tower_config

    if weights == "packaged":
        packaged_model(name)  # there is none
    model, _, tag = name.removeprefix(OPEN_CLIP_PREFIX).partition("/")
    source = tag or "openai" if weights == "pretrained" else weights
    clip, provenance = load_clip(model, source, sha256=sha256, image_size=TOWER_SIZE)
    config = tower_config(model, clip)
    config["vision_cfg"]["image_size"] = TOWER_SIZE
    return open_clip_trunk(name, taken, cast(nn.Module, clip.visual), config), provenance
