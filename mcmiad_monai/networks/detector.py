"""The whole network: image → features → reconstruction → heatmap, slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.folding import fold_batch_norms
from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.networks.score import AnomalyScore


class MCMIADDetector(nn.Module):
    """Slice → heatmap.

    Parameters
    ----------
    encoder : FrozenEncoder
    head : MCMIADHead
        Built for the encoder's channels and grid.
    score : AnomalyScore, optional
        The paper's score (Eq. 6) by default.

    Attributes
    ----------
    heat_scale : Tensor of shape ()
        Divides the score map. Calibration sets it so that 1.0 is the threshold of a pixel.
    calibration, provenance : dict
        What a package carries beside the weights.

    Raises
    ------
    ValueError
        If the head was built for another encoder.
    """

    heat_scale: Tensor

    def __init__(
        self, encoder: FrozenEncoder, head: MCMIADHead, score: AnomalyScore | None = None
    ) -> None:
        super().__init__()
        found = head.options.in_channels, head.options.decoder.grid
        expected = encoder.out_channels, encoder.grid
        if found != expected:
            raise ValueError(
                f"the head takes {found[0]} channels on a grid of {found[1]}, but the encoder "
                f"gives {expected[0]} on {expected[1]}; build the head from the encoder's "
                "out_channels, stage_channels and grid."
            )
        self.encoder, self.head = encoder, head
        self.score = AnomalyScore() if score is None else score
        self.register_buffer("heat_scale", torch.ones(()))
        self.calibration: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {
            "encoder": encoder.provenance,
            "text_prior": head.prior_provenance,
        }

    @property
    def trained_with(self) -> dict[str, Any]:
        """What the provenance says of the training: modality, slices, region, …; may be empty."""
        return dict(self.provenance.get("training", {}))

    def folded(self) -> MCMIADDetector:
        """The same detector for inference, with its BatchNorms folded; the head is shared."""
        detector = MCMIADDetector(fold_batch_norms(self.encoder), self.head, self.score)
        detector.heat_scale = self.heat_scale
        detector.calibration, detector.provenance = self.calibration, self.provenance
        return detector

    def features(self, image: Tensor) -> Tensor:
        """Encode images (B, 1, H, W) in [0, 1] to features (B, C, grid, grid)."""
        return self.encoder(image)

    def heatmap_from_features(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Heatmaps (B, 1, H, W), float32, from features that were computed before."""
        output = self.head(features)
        heatmap = self.score(output.target, output.reconstruction, size)  # (B, 1, H, W)
        return heatmap / self.heat_scale.float()

    def forward(self, image: Tensor) -> Tensor:
        """Heatmaps of images.

        Parameters
        ----------
        image : Tensor of shape (B, 1, H, W)
            Values in [0, 1]; 224×224 in the paper.

        Returns
        -------
        Tensor of shape (B, 1, H, W)
            float32, at least 0; 1.0 is the threshold of a pixel once calibrated.
        """
        return self.heatmap_from_features(self.features(image), image.shape[-2:])
