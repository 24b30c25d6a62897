"""Folded encoders: the same features with fewer layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mcmiad_monai.networks.encoder import FrozenEncoder, build_encoder
from mcmiad_monai.networks.folding import FOLDING_TOLERANCE, fold_batch_norms


def encoder_of(name: str) -> FrozenEncoder:
    """Random weights, and running statistics that are not those of an untrained BatchNorm."""
    encoder = build_encoder(name, weights="random")
    generator = torch.Generator().manual_seed(0)
    for norm in norms(encoder):
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return encoder


def norms(encoder: FrozenEncoder) -> list[nn.BatchNorm2d]:
    return [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]


def images() -> Tensor:
    return torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(1))


# activation inside the norm, a norm of PyTorch's own, and norms that follow no convolution
@pytest.mark.parametrize("name", ["test_efficientnet.r160_in1k", "resnet18", "repvgg_a0"])
def test_features_are_the_same_and_the_encoder_is_left_as_it_was(name: str) -> None:
    encoder = encoder_of(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    expected = encoder(images())
    folded = fold_batch_norms(encoder)
    assert len(norms(folded)) < len(norms(encoder))
    limit = FOLDING_TOLERANCE * float(expected.max() - expected.min())
    torch.testing.assert_close(folded(images()), expected, rtol=0, atol=limit)
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_every_norm_of_an_efficientnet_is_folded() -> None:
    assert norms(fold_batch_norms(encoder_of("test_efficientnet.r160_in1k"))) == []


def test_encoder_without_batch_norm_is_returned() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", weights="random")
    assert fold_batch_norms(encoder) is encoder


class Shared(nn.Module):
    """A convolution that something else reads beside the BatchNorm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward_intermediates(self, image: Tensor, **options: object) -> list[Tensor]:
        before = self.convolution(image)
        return self.model.forward_intermediates(before + self.norm(before), **options)  # type: ignore[operator]


def test_convolution_with_another_reader_is_not_folded(caplog: pytest.LogCaptureFixture) -> None:
    encoder = build_encoder("test_efficientnet.r160_in1k", weights="random")
    encoder.trunk.model = Shared(encoder.trunk.model)
    next(iter(norms(encoder)[-1:])).running_var.fill_(9.0)
    encoder.eval()
    assert fold_batch_norms(encoder) is encoder
    assert "other layers read" in caplog.text
