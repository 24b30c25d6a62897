"""Slices a second of the whole slice network, by engine, beside the plain form in PyTorch.

    python benchmarks/engines.py [--model my_model/models/model.pt] [--batch 16] [--repeats 5]

Plain is timm's `features_only`, which runs and keeps the stages behind stride 16, then pooling,
the head without savings, and the score, in eager float32. All forms have the same weights, read the
same images of 224 × 224, and take turns, so that what else the machine does falls on all. Without
`--model` the weights are random, which costs the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mcmiad_monai.exporting import export_model
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import DEFAULT_ENCODER, build_encoder
from mcmiad_monai.networks.head import build_head, head_from_config
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.runtimes import open_network
from mcmiad_monai.scoring import AnomalyScore

PLAIN = "plain: features_only, no savings"


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


def plain_form(detector: MCMIADDetector) -> Callable[[Tensor], Tensor]:
    """The plain form of a detector: nothing cut, nothing saved."""
    features = Untruncated(detector)
    head = head_from_config({**detector.head.config, "savings": False})
    head.load_state_dict(detector.head.state_dict())
    head.eval()

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
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    detector = default_detector() if options.model is None else load_package(options.model)
    forms: dict[str, Callable[[Tensor], Tensor]] = {PLAIN: plain_form(detector)}
    with tempfile.TemporaryDirectory() as folder:
        path = export_model(detector, Path(folder) / "model.onnx")
        for engine in ("torch", "onnxruntime", "openvino"):
            forms[engine] = open_network(detector, engine=engine, path=path)  # type: ignore[arg-type]
        measure(forms, batch=options.batch, repeats=options.repeats)


@torch.inference_mode()
def measure(forms: dict[str, Callable[[Tensor], Tensor]], *, batch: int, repeats: int) -> None:
    """Time all forms in turn, and print the table."""
    images = torch.rand(batch, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = forms[PLAIN](images)
    errors = {name: float((run(images) - expected).abs().max()) for name, run in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, run in forms.items():
            start = time.perf_counter()
            run(images)
            seconds[name].append(time.perf_counter() - start)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, batch {batch}")
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
