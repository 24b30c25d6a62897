"""The frozen image encoder (§3.2): image → one feature map of all stages on a common grid."""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcmiad_monai.networks.trunks import Trunk
from mcmiad_monai.networks.weights import tensors_sha256

Pool = Literal["bilinear", "area"]


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
        Name, weights source, digests, pooling, layers of a vision transformer, timm version.
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
        if trunk.config.plain:
            self.provenance["layers"] = list(trunk.config.indices)
            self.provenance["merge"] = trunk.config.merge
        if self.align_corners:
            self.config["align_corners"] = self.provenance["align_corners"] = True
        self.update_digest()

    @property
    def members(self) -> tuple[FrozenEncoder, ...]:
        """Encoders of an ensemble; of another encoder itself alone."""
        return (self,)

    @property
    def member_channels(self) -> tuple[int, ...]:
        """Channels of each member, in the order of the features."""
        return tuple(member.out_channels for member in self.members)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.members[0].mean.device

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
