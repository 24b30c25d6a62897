"""The frozen image encoder (§3.2): image → one feature map of all stages on a common grid."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.packaged import DEFAULT_PACKAGED, packaged_file, packaged_model
from mcmiad_monai.networks.trunks import (
    OPEN_CLIP_PREFIX,
    Trunk,
    TrunkConfig,
    empty_tower,
    open_clip_trunk,
    timm_hub_file,
    timm_trunk,
)
from mcmiad_monai.networks.weights import read_state_dict, require_file, tensors_sha256

logger = logging.getLogger(__name__)

Pool = Literal["bilinear", "area"]

DEFAULT_ENCODER = "tf_efficientnet_b4.aa_in1k"
"""EfficientNet-B4 (§4.2), with the ImageNet weights that UniAD and MoEAD use."""

AUTO = "auto"
"""Name of the encoder that goes with the weights: the default one, or that of packaged weights."""


class FrozenEncoder(nn.Module):
    """Image in [0, 1] → features of all stages on one grid. Never trained.

    Parameters
    ----------
    trunk : Trunk
        The truncated model.
    pool : {"bilinear", "area"}
        How a stage is resized to the grid. ``"bilinear"`` is the paper's reading; of the shallow
        stages it uses 4 of the 64 or 16 pixels of a cell. ``"area"`` is a 3×3 average followed by
        adaptive averaging, which uses all of them.
    grid : int
        Cells a side.
    align_corners : bool
        Of bilinear resizing: lay the centres of corner cells on those of corner pixels, as UniAD
        and MoEAD do. A cell's centre then moves by up to half a cell.
    provenance : dict, optional
        Where the weights came from; digest and settings are added.

    Attributes
    ----------
    stage_channels : tuple of int
        Channels of each stage.
    out_channels : int
        Their sum C.
    provenance : dict
        Name, weights source, digests, pooling, timm version.
    config : dict
        Fit for JSON; `encoder_from_config` rebuilds an empty encoder from it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: Trunk,
        *,
        pool: Pool = "bilinear",
        grid: int = 14,
        align_corners: bool = False,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("bilinear", "area"):
            raise ValueError(f"pool {pool!r} is not known; choose 'bilinear' or 'area'.")
        self.trunk, self.pool, self.grid = trunk, pool, grid
        self.align_corners = align_corners and pool == "bilinear"
        self.stage_channels = trunk.channels
        self.out_channels = sum(trunk.channels)
        self.register_buffer("mean", torch.tensor(trunk.config.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(trunk.config.std).view(1, 3, 1, 1))
        self.requires_grad_(False)
        super().train(False)
        self.config: dict[str, Any] = {"trunk": trunk.config.to_dict(), "pool": pool, "grid": grid}
        self.provenance: dict[str, Any] = {
            "name": trunk.config.name,
            "pool": pool,
            "timm_version": timm.__version__,
            **(provenance or {}),
        }
        if self.align_corners:
            self.config["align_corners"] = self.provenance["align_corners"] = True
        self.update_digest()

    def train(self, mode: bool = True) -> FrozenEncoder:  # noqa: ARG002 - always frozen
        """Stay in evaluation mode."""
        return super().train(False)

    def update_digest(self) -> None:
        """Write the SHA-256 of the truncated tensors into `provenance`."""
        self.provenance["tensors_sha256"] = tensors_sha256(self.trunk.state_dict())

    def forward(self, image: Tensor) -> Tensor:
        """Encode.

        Parameters
        ----------
        image : Tensor of shape (B, 1, H, W) or (B, 3, H, W)
            Grey or RGB values in [0, 1].

        Returns
        -------
        Tensor of shape (B, C, grid, grid)
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(
                f"the image has shape {tuple(image.shape)}; (B, 1, H, W) or (B, 3, H, W) is needed."
            )
        rgb = image.to(self.mean.dtype).expand(-1, 3, -1, -1)  # (B, 3, H, W)
        stages = self.trunk((rgb - self.mean) / self.std)
        return torch.cat([self._to_grid(stage) for stage in stages], dim=1)

    def _to_grid(self, stage: Tensor) -> Tensor:
        """Bring one stage (B, c, h, w) to (B, c, grid, grid)."""
        size = (self.grid, self.grid)
        if self.pool == "area":
            smooth = F.avg_pool2d(stage, 3, stride=1, padding=1, count_include_pad=False)
            return F.adaptive_avg_pool2d(smooth, size)
        if tuple(stage.shape[-2:]) == size:
            return stage
        return F.interpolate(stage, size, mode="bilinear", align_corners=self.align_corners)


def build_encoder(
    name: str = AUTO,
    *,
    weights: str | Path = "pretrained",
    pool: Pool = "bilinear",
    grid: int = 14,
    align_corners: bool = False,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    sha256: str | None = None,
) -> FrozenEncoder:
    """Build the encoder with weights of a hub, a package or a file, or random ones with a warning.

    Parameters
    ----------
    name : str
        A timm model, or ``"open_clip:MODEL"`` / ``"open_clip:MODEL/PRETRAINED"`` for the visual
        tower of OpenCLIP (pretrained ``openai`` unless named). ``"auto"`` is EfficientNet-B4, or
        ``tf_efficientnet_lite0`` if the weights are packaged.
    weights : str or Path
        ``"pretrained"`` (the hub of timm or OpenCLIP), ``"packaged"`` (ImageNet, from the Python
        package of ``tf_efficientnet_lite0``, ``1`` or ``2``), the path of a safetensors file or
        torch checkpoint, or ``"random"`` (for tests and trials: worth nothing on real images).
    pool, grid, align_corners
        See `FrozenEncoder`.
    indices : sequence of int, optional
        Stages or blocks to use. By default all strides up to 16, or the last block of a ViT.
    seed : int
        Seed of random weights.
    sha256 : str, optional
        Expected digest of the weights file.

    Raises
    ------
    WeightsError
        If the weights are not available or do not fit. There is no fallback to random weights.
    ValueError
        If the model is not known.
    """
    if name == AUTO:
        name = DEFAULT_PACKAGED if str(weights) == "packaged" else DEFAULT_ENCODER
    if str(weights) == "random":
        message = (
            f"the encoder {name} has RANDOM weights (seed {seed}): it is good for trying the "
            "software, and its heatmaps are worth nothing on real images."
        )
        warnings.warn(message, stacklevel=2)
        logger.warning(message)
        return empty_encoder(
            name, pool=pool, grid=grid, align_corners=align_corners, indices=indices, seed=seed
        )
    with torch.random.fork_rng(devices=[]):
        trunk, source = _trunk(name, str(weights), indices, sha256)
    return FrozenEncoder(
        trunk, pool=pool, grid=grid, align_corners=align_corners, provenance=source
    )


def empty_encoder(
    name: str = DEFAULT_ENCODER,
    *,
    pool: Pool = "bilinear",
    grid: int = 14,
    align_corners: bool = False,
    indices: Sequence[int] | None = None,
    seed: int = 0,
) -> FrozenEncoder:
    """Build an encoder with random weights and no warning, to count its size or to load weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk, _ = _trunk(name, "random", indices, None)
    source = {"weights": f"random, seed {seed}"}
    return FrozenEncoder(
        trunk, pool=pool, grid=grid, align_corners=align_corners, provenance=source
    )


def encoder_from_config(config: dict[str, Any]) -> FrozenEncoder:
    """Rebuild an encoder of `FrozenEncoder.config`, for a state dict that is loaded afterwards."""
    trunk = TrunkConfig.from_dict(config["trunk"])
    with torch.random.fork_rng(devices=[]):
        if trunk.tower:
            tower_config = json.loads(trunk.tower)
            tower = empty_tower(tower_config)
            built = open_clip_trunk(trunk.name, trunk.indices, tower, tower_config)
        else:
            built = timm_trunk(trunk.name, trunk.indices, None, "")
    options = {name: config[name] for name in ("pool", "grid", "align_corners") if name in config}
    return FrozenEncoder(built, **options)


def calibrate_batchnorm(encoder: FrozenEncoder, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every BatchNorm to the average over training images.

    Meant for random weights: pretrained ones have statistics. The encoder's provenance gets the
    number of images and a new digest.

    Parameters
    ----------
    encoder : FrozenEncoder
    batches : iterable of Tensor of shape (B, 1 or 3, H, W)
        Normal training images in [0, 1].

    Raises
    ------
    ValueError
        If the encoder has no BatchNorm or there are no images.
    """
    layers = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        raise ValueError(f"{encoder.provenance['name']} has no BatchNorm to calibrate.")
    momenta = [layer.momentum for layer in layers]
    count = 0
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.training = True
        for batch in batches:
            with torch.no_grad():
                encoder(batch.to(encoder.mean.device))
            count += len(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum, layer.training = momentum, False
    if count == 0:
        raise ValueError("there were no images to calibrate BatchNorm on; give at least one batch.")
    encoder.provenance["batchnorm"] = f"calibrated on {count} images"
    encoder.update_digest()


def _trunk(
    name: str, weights: str, indices: Sequence[int] | None, sha256: str | None
) -> tuple[Trunk, dict[str, Any]]:
    make = _open_clip_trunk if name.startswith(OPEN_CLIP_PREFIX) else _timm_trunk
    return make(name, weights, indices, sha256)


def _timm_trunk(
    name: str, weights: str, indices: Sequence[int] | None, sha256: str | None
) -> tuple[Trunk, dict[str, Any]]:
    if weights == "random":
        return timm_trunk(name, indices, None, ""), {}
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
    return timm_trunk(name, indices, state, str(path), in_order=in_order), provenance


def _open_clip_trunk(
    name: str, weights: str, indices: Sequence[int] | None, sha256: str | None
) -> tuple[Trunk, dict[str, Any]]:
    from mcmiad_monai.networks.clip import load_clip, tower_config

    if weights == "packaged":
        packaged_model(name)  # there is none
    model, _, tag = name.removeprefix(OPEN_CLIP_PREFIX).partition("/")
    source = tag or "openai" if weights == "pretrained" else weights
    clip, provenance = load_clip(model, source, sha256=sha256)
    config = tower_config(model, clip)
    return open_clip_trunk(name, indices, cast(nn.Module, clip.visual), config), provenance
