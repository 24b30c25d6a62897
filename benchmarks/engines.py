"""Slices a second of the whole slice network, by engine, beside the plain form in PyTorch.

    python benchmarks/engines.py [--model my_model/models/model.pt] [--batch 16] [--repeats 5]
    python benchmarks/engines.py --batches     # slices/s of PyTorch without workers, by its batch
    python benchmarks/engines.py --device cuda [--compile bfloat16] [--batch 256]

Plain is timm's `features_only`, which runs and keeps the stages behind stride 16, then pooling,
the head without savings, and the score, in eager float32. All forms have the same weights, read
the same images of 224 × 224, and take turns, so that what else the machine does falls on all. Each
engine divides the images as it does in use. Plain is shown with all images in one batch and with
two at a time. Without `--model` the weights are random, which costs the same. The error is the
largest difference from plain over the range of plain's heatmaps.

On a GPU there is PyTorch alone, each form in batches of its own size. There plain is shown in
float32, from which the error is, and in what PyTorch computes by itself, TensorFloat-32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import DEFAULT_ENCODER, build_encoder
from mcmiad_monai.networks.head import build_head, head_from_config
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.runtime.cpu import slices_at_once
from mcmiad_monai.runtime.export import export_model
from mcmiad_monai.runtime.gpu import ACCELERATOR_SLICES
from mcmiad_monai.runtime.open import Engine, open_network
from mcmiad_monai.runtime.precision import PRECISIONS, Precision, ProductsIn, slowdown

PLAIN = "plain: features_only, no savings"
TENSORFLOAT = "plain, in TensorFloat-32"
FORMS: tuple[tuple[Engine, Precision], ...] = (
    ("torch", "float32"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "bfloat16"),
)


class Untruncated(nn.Module):
    """The stages of a detector's encoder, with the rest of the model behind them."""

    def __init__(self, detector: MCMIADDetector) -> None:
        super().__init__()
        import timm

        encoder = detector.encoder
        config = encoder.trunk.config
        self.model = timm.create_model(
            config.name, pretrained=False, features_only=True, out_indices=config.indices
        ).eval()
        known = encoder.trunk.model.state_dict()
        missing, unexpected = self.model.load_state_dict(known, strict=False)
        if unexpected or set(missing) & set(known):
            raise RuntimeError(f"the weights do not fit timm's features_only: {unexpected}")
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, C, grid, grid) of images (B, 1, H, W)."""
        rgb = image.expand(-1, 3, -1, -1)
        stages = self.model((rgb - self.encoder.mean) / self.encoder.std)
        return torch.cat([self.encoder._to_grid(stage) for stage in stages], dim=1)


def default_detector() -> MCMIADDetector:
    """EfficientNet-B4 and the default head, with random weights."""
    encoder = build_encoder(DEFAULT_ENCODER, weights="random", pool="area")
    head = build_head(
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        prior=encode_hashing(normal_prompts()),
        standardize_features=True,
    )
    return MCMIADDetector(encoder, head, AnomalyScore(terms="cos")).eval()


def place(device: str) -> str:
    """What computes, and with which PyTorch."""
    if device == "cpu":
        return f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def wait(device: str) -> None:
    """Let a GPU finish what it was told to do."""
    if device != "cpu":
        torch.cuda.synchronize()


def plain_form(detector: MCMIADDetector) -> Callable[[Tensor], Tensor]:
    """The plain form of a detector: nothing cut, nothing saved."""
    features = Untruncated(detector).to(detector.heat_scale.device)
    head = head_from_config({**detector.head.config, "savings": False})
    head.load_state_dict(detector.head.state_dict())
    head.to(detector.heat_scale.device).eval()

    def run(image: Tensor) -> Tensor:
        output = head(features(image))
        found = detector.score(output.target, output.reconstruction, image.shape[-2:])
        return found / detector.heat_scale

    return run


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", nargs="+", choices=PRECISIONS, default=[], help="compiled forms of a GPU"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    detector = default_detector() if options.model is None else load_package(options.model)
    if options.batches:
        by_batch(detector, repeats=options.repeats)
        return
    if options.device != "cpu":
        on_gpu(detector.to(options.device), options)
        return
    plain = plain_form(detector)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        PLAIN: plain,
        "plain, two at a time": divided(plain, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = export_model(detector, Path(folder) / "model.onnx")
        for engine, precision in FORMS:
            if precision != "float32" and slowdown(precision) > 1:
                print(f"{engine} {precision}: this processor has no instructions for it")
                continue
            # a model of its own for each, since the layout in memory is changed in place
            own = copy.deepcopy(detector)
            network = open_network(own, engine=engine, path=path, precision=precision)
            count = slices_at_once(network, torch.device("cpu"))
            forms[f"{engine} {precision}"] = divided(network, count)
        measure(forms, batch=options.batch, repeats=options.repeats)


def on_gpu(detector: MCMIADDetector, options: argparse.Namespace) -> None:
    """The table of a GPU."""
    plain = divided(plain_form(detector), ACCELERATOR_SLICES)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        PLAIN: ProductsIn(Called(plain)),
        TENSORFLOAT: plain,
    }
    kinds = [(name, False) for name in PRECISIONS] + [(name, True) for name in options.compile]
    for precision, compiled in kinds:
        network = open_network(
            copy.deepcopy(detector), device=options.device, precision=precision, compiled=compiled
        )
        count = slices_at_once(network, torch.device(options.device))
        name = f"torch {precision}{', compiled' if compiled else ''}"
        forms[name] = divided(network, count)
    measure(forms, batch=options.batch, repeats=options.repeats, device=options.device)


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, image: Tensor) -> Tensor:
        """Call it."""
        return self.run(image)


def divided(run: Callable[[Tensor], Tensor], count: int) -> Callable[[Tensor], Tensor]:
    """The same with so many images at a time."""

    def parts(images: Tensor) -> Tensor:
        return torch.cat([run(part) for part in images.split(count)])

    return parts


@torch.inference_mode()
def by_batch(detector: MCMIADDetector, *, repeats: int) -> None:
    """Slices a second of PyTorch, all cores on each batch, in batches of several sizes."""
    images = torch.rand(32, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    sizes = (1, 2, 4, 8, 16, 32)
    network = copy.deepcopy(detector).to(memory_format=torch.channels_last)
    forms = {f"torch in batches of {n}": divided(network, n) for n in sizes}
    measure({PLAIN: plain_form(detector), **forms}, batch=len(images), repeats=repeats)


@torch.inference_mode()
def measure(
    forms: dict[str, Callable[[Tensor], Tensor]], *, batch: int, repeats: int, device: str = "cpu"
) -> None:
    """Time all forms in turn, and print the table."""
    images = torch.rand(batch, 1, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    expected = forms[PLAIN](images)
    size = float(expected.max() - expected.min())
    errors = {}
    for name, run in forms.items():
        start = time.perf_counter()
        errors[name] = float((run(images) - expected).abs().max()) / size
        if name.endswith("compiled"):
            print(f"the first call of {name}: {time.perf_counter() - start:.0f} s")
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, run in forms.items():
            start = time.perf_counter()
            run(images)
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    print(f"{place(device)}, batch {batch}")
    print(f"{'form':<34}{'slices/s':>10}{'least':>8}{'most':>8}{'ratio':>8}{'error':>10}")
    plain = statistics.median(seconds[PLAIN])
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(
            f"{name:<34}{batch / middle:>10.1f}{batch / max(taken):>8.1f}"
            f"{batch / min(taken):>8.1f}{plain / middle:>8.2f}{errors[name]:>10.1e}"
        )


if __name__ == "__main__":
    main()
