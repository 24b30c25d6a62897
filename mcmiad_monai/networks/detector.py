"""The whole network: image → features → reconstruction or memory → heatmap, slice by slice."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mcmiad_monai.networks import extra_state
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.folding import fold_batch_norms
from mcmiad_monai.networks.head import MCMIADHead
from mcmiad_monai.networks.memory import NormalMemory
from mcmiad_monai.networks.score import AnomalyScore, foreground_of, intensity_of


class MCMIADDetector(nn.Module):
    """Slice → heatmap.

    Parameters
    ----------
    encoder : FrozenEncoder
    head : MCMIADHead, optional
        Built for the encoder's channels and grid; None if the memory alone was built.
    score : AnomalyScore, optional
        Of which maps a heatmap is made; the paper's score (Eq. 6) by default.
    memories : mapping, optional
        Memories of normal tokens by the name of their distance, ``"cosine"`` and ``"l2"``.

    Attributes
    ----------
    heat_scale : Tensor of shape ()
        Divides the score map. Calibration sets it so that 1.0 is the threshold of a pixel.
    calibration, provenance : dict
        What its state dict carries beside the weights, under PyTorch's key ``_extra_state``.
    digest : str or None
        SHA-256 of configuration, calibration, provenance and weights, of a model from a file.

    Raises
    ------
    ValueError
        If head or memory were built for another encoder, or the score needs one that is missing.
    """

    heat_scale: Tensor

    def __init__(
        self,
        encoder: FrozenEncoder,
        head: MCMIADHead | None = None,
        score: AnomalyScore | None = None,
        memories: Mapping[str, NormalMemory] | None = None,
    ) -> None:
        super().__init__()
        if head is not None:
            found = head.options.in_channels, head.options.decoder.grid
            _require_fit("head", found, (encoder.out_channels, encoder.grid))
        self.encoder, self.head = encoder, head
        self.score = AnomalyScore() if score is None else score
        self.memories = nn.ModuleDict()
        self.register_buffer("heat_scale", torch.ones(()))
        self.calibration: dict[str, Any] = {}
        prior = None if head is None else head.prior_provenance
        self.digest: str | None = None
        self.provenance: dict[str, Any] = {"encoder": encoder.provenance, "text_prior": prior}
        self.set_memories(memories or {})

    def set_memories(self, memories: Mapping[str, NormalMemory]) -> None:
        """Put memories in the place of those that are there.

        Raises
        ------
        ValueError
            If one was built for another encoder.
        """
        for name, memory in memories.items():
            expected = (self.encoder.out_channels, self.encoder.grid)
            _require_fit(f"memory {name}", (memory.options.channels, self.encoder.grid), expected)
        self.memories = nn.ModuleDict(memories)

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
        memories = {name: memory.config for name, memory in self.memories.items()}
        return {
            "config": {
                "encoder": self.encoder.config,
                "head": None if self.head is None else self.head.config,
                "score": self.score.config,
                "memories": memories,
            },
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
        self.digest = extra_state.content_sha256(content)
        self.encoder.provenance = self.provenance["encoder"]
        if self.head is not None:
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
        """The same detector for inference: BatchNorms folded, all other parts shared."""
        memories = cast(Mapping[str, NormalMemory], dict(self.memories.items()))
        detector = MCMIADDetector(fold_batch_norms(self.encoder), self.head, self.score, memories)
        detector.heat_scale = self.heat_scale
        detector.calibration, detector.provenance = self.calibration, self.provenance
        return detector

    def features(self, image: Tensor) -> Tensor:
        """Encode images (B, 1, H, W) in [0, 1] to features (B, C, grid, grid)."""
        return self.encoder(image)

    def source_maps(
        self, features: Tensor, names: Iterable[str], intensity: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Score maps (B, 1, grid, grid) by the names of their sources, from features.

        Parameters
        ----------
        intensity : Tensor of shape (B, 1, h, w), optional
            Of the images, which is itself the map of the source ``"intensity"``.

        Raises
        ------
        ValueError
            If the detector lacks a part that one is made by.
        """
        return {name: self._source_map(name, features, intensity) for name in names}

    def _source_map(self, name: str, features: Tensor, intensity: Tensor | None) -> Tensor:
        if name == "intensity" and intensity is not None:
            return intensity.float()
        if name == "head" and self.head is not None:
            output = self.head(features)
            return self.score.score_map(output.target, output.reconstruction)
        distance = name.removeprefix("memory-")
        if distance in self.memories:
            distances: Tensor = self.memories[distance](features)
            return distances
        parts = [
            *(["head"] if self.head is not None else []),
            *(f"memory-{d}" for d in self.memories),
            *(["intensity"] if intensity is not None else []),
        ]
        raise ValueError(
            f"the score is made of {name!r}, and the model has only {parts}; choose another score, "
            "or train the part that is missing."
        )

    def heatmap_from_features(
        self, features: Tensor, foreground: Tensor, intensity: Tensor | None = None
    ) -> Tensor:
        """Heatmaps (B, 1, H, W), float32, from features that were computed before.

        Parameters
        ----------
        features : Tensor of shape (B, C, grid, grid)
        foreground : Tensor of shape (B, 1, H, W), bool
            Of the images; says their size, and where their midline is.
        intensity : Tensor of shape (B, 1, h, w), optional
            Of the images; needed where the score has it as a source.
        """
        maps = self.source_maps(features, self.score.sources, intensity)
        return self.score.place(self.score.total(maps), foreground) / self.heat_scale.float()

    def forward(self, image: Tensor) -> Tensor:
        """Heatmaps of images.

        Parameters
        ----------
        image : Tensor of shape (B, 1, H, W), or (B, 3, H, W)
            Values in [0, 1]; 224×224 in the paper. Three channels are colours, or the slices
            before, at and after the place.

        Returns
        -------
        Tensor of shape (B, 1, H, W)
            float32, at least 0; 1.0 is the threshold of a pixel once calibrated.
        """
        intensity = intensity_of(image) if "intensity" in self.score.sources else None
        return self.heatmap_from_features(self.features(image), foreground_of(image), intensity)


def _require_fit(part: str, found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise ValueError(
            f"the {part} takes {found[0]} channels on a grid of {found[1]}, but the encoder gives "
            f"{expected[0]} on {expected[1]}; build it from the encoder's out_channels, "
            "stage_channels and grid."
        )


class _Scriptable(nn.Module):
    """A traced network, in a module that ``torch.jit.script`` takes."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, image: Tensor) -> Tensor:
        """Heatmaps of images (B, 1, 224, 224)."""
        heatmap: Tensor = self.traced(image)
        return heatmap
