"""The whole network: image → features → reconstruction → heatmap, slice by slice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcmiad_monai.networks import extra_state
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
        What its state dict carries beside the weights, under PyTorch's key ``_extra_state``.

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

    @property
    def image_options(self) -> dict[str, Any]:
        """Options of :func:`~mcmiad_monai.transforms.preprocessing` that the training had."""
        method = self.trained_with.get("method", {})
        # a model that does not say them was trained before there was a choice
        before = {"keep_colours": False, "normalize_images": True, "mask_background": True}
        options: dict[str, Any] = {k: bool(method.get(k, value)) for k, value in before.items()}
        return {**options, "field_of_view": str(method.get("field_of_view", "whole"))}

    @property
    def context(self) -> int:
        """Slices that it sees at once: 1, or 3 if it was trained on slices and neighbours."""
        return int(self.trained_with.get("method", {}).get("context", 1))

    @property
    def channels(self) -> int:
        """Channels of its images: 3 if it was trained on colours, or on slices and neighbours."""
        return 3 if self.image_options["keep_colours"] or self.context == 3 else 1

    @property
    def description(self) -> dict[str, Any]:
        """Configuration, calibration and provenance: all that is needed beside the weights."""
        parts = {"encoder": self.encoder, "head": self.head, "score": self.score}
        return {
            "config": {name: part.config for name, part in parts.items()},
            "calibration": self.calibration,
            "provenance": self.provenance,
        }

    def weights(self) -> dict[str, Tensor]:
        """State dict without the extra state."""
        state = {"heat_scale": self.heat_scale}
        for name, part in self.named_children():
            state |= part.state_dict(prefix=f"{name}.")
        return state

    def get_extra_state(self) -> Tensor:
        """Its `description` and a digest of the weights, uint8 (n,)."""
        return extra_state.encode(self.description, self.weights())

    def set_extra_state(self, state: Tensor) -> None:
        """Take calibration and provenance from another detector's extra state."""
        content = extra_state.decode(state)
        self.calibration, self.provenance = content["calibration"], content["provenance"]
        self.encoder.provenance = self.provenance["encoder"]
        self.head.prior_provenance = self.provenance["text_prior"]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        extra = own.pop(extra_state.EXTRA_STATE, None)
        if extra is not None and (problem := extra_state.mismatch(extra, own)):
            error_messages: list[str] = args[-1]
            error_messages.append(problem)

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles: the traced network, for slices of 224×224."""
        example = torch.rand(2, self.channels, 224, 224, device=self.heat_scale.device)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter(
                "ignore"
            )  # shapes that the tracer takes for constants are constant
            return _Scriptable(torch.jit.trace(self, example, check_trace=False))

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


class _Scriptable(nn.Module):
    """A traced network, in a module that ``torch.jit.script`` takes."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, image: Tensor) -> Tensor:
        """Heatmaps of images (B, 1, 224, 224)."""
        heatmap: Tensor = self.traced(image)
        return heatmap
