"""BatchNorm folded into the convolution before it: the same numbers with less memory traffic."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mcmiad_monai.networks.ensemble import EnsembleEncoder
from mcmiad_monai.networks.frozen import FrozenEncoder

logger = logging.getLogger(__name__)

FOLDING_TOLERANCE = 1e-4
"""Largest change of a feature, relative to the range of the features, that counts as rounding."""


@torch.no_grad()
def fold_batch_norms(encoder: FrozenEncoder, *, size: int = 224) -> FrozenEncoder:
    """Copy an encoder for inference, with each BatchNorm inside the convolution it follows.

    An image is passed through the encoder to find the convolution whose output a BatchNorm takes.
    An activation inside the BatchNorm, as in timm's, stays in its place.

    Parameters
    ----------
    encoder : FrozenEncoder
        Left as it is.
    size : int
        Side of the image in pixels.

    Returns
    -------
    FrozenEncoder
        A copy with other tensors than a package stores; members of an ensemble are folded one by
        one. `encoder` itself if it has no BatchNorm,
        or, with a warning in the log, if another layer reads such a convolution too, so that
        features would change by more than `FOLDING_TOLERANCE`.
    """
    if len(encoder.members) > 1:  # each by itself, so that its features have its own tolerance
        return EnsembleEncoder([fold_batch_norms(member, size=size) for member in encoder.members])
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return encoder
    folded = copy.deepcopy(encoder)
    image = torch.linspace(0, 1, size * size).view(1, 1, size, size).to(folded.device)
    expected, pairs = _observed(folded, image)
    parents = {child: (m, name) for m in folded.modules() for name, child in m.named_children()}
    for convolution, norm in pairs:
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,  # type: ignore[arg-type]
            norm.running_var,  # type: ignore[arg-type]
            norm.eps,
            norm.weight,
            norm.bias,
        )
        convolution.weight = nn.Parameter(weight, requires_grad=False)
        convolution.bias = nn.Parameter(bias, requires_grad=False)
        parent, name = parents[norm]
        setattr(parent, name, _rest(norm))
    changed = float((folded(image) - expected).abs().max() / (expected.max() - expected.min()))
    if not changed <= FOLDING_TOLERANCE:
        logger.warning(
            "BatchNorm of %s is not folded, since other layers read its convolutions too (features "
            "would change by %.1e of their range): same numbers, slower",
            encoder.provenance["name"],
            changed,
        )
        return encoder
    return folded


def _observed(
    encoder: FrozenEncoder, image: Tensor
) -> tuple[Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """Features of an image, and each BatchNorm with the convolution whose output it received."""
    # outputs are kept alive, so that no later tensor has the identity of an earlier one
    outputs: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def leave(module: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            outputs.append((output, module))

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            pairs.extend((made_by, module) for output, made_by in outputs if output is inputs[0])

    handles = [m.register_forward_hook(leave) for m in encoder.modules()]
    handles += [m.register_forward_pre_hook(enter) for m in encoder.modules()]
    features = encoder(image)
    for handle in handles:
        handle.remove()
    return features, pairs


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """Layers inside timm's BatchNorm after the normalisation; none in PyTorch's."""
    parts = (getattr(norm, name, None) for name in ("drop", "act"))
    kept = [p for p in parts if p is not None and not isinstance(p, nn.Identity)]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept)
