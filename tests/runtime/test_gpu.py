"""The form of a slice network for a GPU gives the numbers of the plain one."""

from __future__ import annotations

import functools

import pytest
import torch
from small_heads import small_detector
from torch import Tensor, nn

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.runtime.cpu import encoding
from mcmiad_monai.runtime.gpu import FixedBatches, accelerated
from mcmiad_monai.runtime.open import _on_gpu, open_network
from mcmiad_monai.runtime.precision import ProductsIn, require_gpu_to_compile, without_tensorfloat
from mcmiad_monai.training.distributed import replicate

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def untrained() -> MCMIADDetector:
    encoder = build_encoder("test_efficientnet.r160_in1k", weights="random", pool="area")
    return small_detector(encoder, dim=32, heads=8, hidden=64, rounds=4, neighbourhood=7)


class Sums(nn.Module):
    """Sums the pixels of each image, and keeps how many images a call had."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append(len(image))
        return image.sum(dim=(1, 2, 3))


@pytest.mark.parametrize("count", [1, 4, 6])
def test_batches_of_one_size_give_every_image_its_own_answer(count: int) -> None:
    network, images = Sums(), torch.rand(count, 1, 3, 5)
    found = FixedBatches(network, 4)(images)
    torch.testing.assert_close(found, images.sum(dim=(1, 2, 3)))
    assert set(network.sizes) == {4}


def test_network_is_left_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    own = accelerated(network, torch.device("cpu"), "bfloat16")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert {p.dtype for p in own.parameters()} == {torch.bfloat16}
    images = torch.rand(2, 1, 8, 8)
    found = own(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network(images), rtol=0.05, atol=0.02)


def test_tensorfloat_is_off_inside_and_as_before_outside() -> None:
    before = torch.backends.cudnn.allow_tf32
    seen = []

    class Looks(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return image

    ProductsIn(Looks())(torch.rand(1, 1, 2, 2))
    with pytest.raises(RuntimeError, match="stop"), without_tensorfloat():
        raise RuntimeError("stop")
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_compiling_for_a_cpu_is_refused_where_it_is_asked_for() -> None:
    require_gpu_to_compile("cuda", compiled=True)
    for call in (
        lambda: open_network(untrained(), compiled=True),
        lambda: open_network(untrained(), engine="onnxruntime", device="cuda", compiled=True),
        lambda: replicate(untrained().head, "cpu", compiled=True),
    ):
        with pytest.raises(ValueError, match="runs on cpu: leave compile false"):
            call()


@pytest.mark.parametrize("compiled", [False, True])
def test_form_for_a_gpu_gives_the_heatmaps_of_the_detector(
    monkeypatch: pytest.MonkeyPatch, *, compiled: bool
) -> None:
    # what compiles for the CPU needs a compiler
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    detector, images = untrained(), torch.rand(3, 1, 96, 96)
    network = _on_gpu(detector, torch.device("cpu"), "float32", compiled=compiled)
    assert isinstance(network, FixedBatches) == compiled
    if compiled:
        network.slices_at_once = 2
    with torch.inference_mode():
        torch.testing.assert_close(network(images), detector(images), rtol=1e-4, atol=1e-5)


@on_gpu
@pytest.mark.parametrize("pool", ["area", "bilinear"])
def test_features_on_a_gpu_are_those_of_the_cpu(pool: str) -> None:
    encoder = build_encoder("test_efficientnet.r160_in1k", weights="random", pool=pool)
    images = torch.rand(5, 1, 96, 96)
    with torch.inference_mode():
        expected = encoder(images)
        found = encoding(encoder, torch.device("cuda"))(images.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert encoder.mean.device.type == "cuda"
