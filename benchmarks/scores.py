"""Slices a second of models that differ in their score alone, by engine, in turns.

    python benchmarks/scores.py [--encoder tf_efficientnetv2_b0] [--batch 48] [--repeats 7]

The head alone was the default before there was a memory; `score: auto` takes one of the others.
Weights and tokens are random, which costs the same. The images are noise with a dark border; models
with neighbouring slices get them as three channels. All models take turns, so that what else the
machine does falls on all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import FrozenEncoder, build_encoder
from mcmiad_monai.networks.head import build_head
from mcmiad_monai.networks.memory import MemoryConfig, NormalMemory
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import encode_hashing
from mcmiad_monai.runtime.export import export_model
from mcmiad_monai.runtime.open import Engine, open_network

ENGINES: tuple[Engine, ...] = ("torch", "onnxruntime", "openvino")
TOKENS = 5000
STEPS = {"symmetry": 0.4, "smooth_sigma": 6.0}


def models(encoder: FrozenEncoder) -> dict[str, MCMIADDetector]:
    """One detector a score; the encoder is shared."""
    head = build_head(
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        prior=encode_hashing(normal_prompts()),
        standardize_features=True,
    )
    memory = NormalMemory(MemoryConfig(size=TOKENS, channels=encoder.out_channels))
    with torch.no_grad():
        memory.tokens.copy_(torch.randn(memory.tokens.shape))
    parts = {"head": head, "memories": {"cosine": memory}}
    found = {
        "head": MCMIADDetector(encoder, head, AnomalyScore(terms="cos")),
        "memory-cosine": _with(encoder, parts, {"memory-cosine": 1.0}),
        "memory-cosine, 2.5-D, mirrored, smoothed": _with(
            encoder, parts, {"memory-cosine": 1.0}, **STEPS
        ),
        "the same + intensity": _with(
            encoder, parts, {"memory-cosine": 1.0, "intensity": 1.0}, **STEPS
        ),
        "head + memory-cosine": _with(encoder, parts, {"head": 1.0, "memory-cosine": 1.0}),
    }
    return {name: model.eval() for name, model in found.items()}


def _with(
    encoder: FrozenEncoder, parts: dict, sources: dict[str, float], **steps: float
) -> MCMIADDetector:
    detector = MCMIADDetector(encoder, parts["head"], AnomalyScore(sources=sources, **steps))
    detector.set_memories(parts["memories"])
    if steps:
        detector.provenance["training"] = {"method": {"context": 3}}
    return detector


@torch.inference_mode()
def timed(networks: dict[str, nn.Module], images: torch.Tensor, repeats: int) -> None:
    """Print slices a second of each network: median, least and most of the repeats."""
    rates: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(repeats + 1):
        for name, network in networks.items():
            given = images if "2.5-D" in name or "same" in name else images[:, 1:2].contiguous()
            start = time.perf_counter()
            network(given)
            if repeat:  # the first warms up
                rates[name].append(len(images) / (time.perf_counter() - start))
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates["head"], strict=True))
        print(
            f"  {name:<44}{statistics.median(found):>8.1f}{min(found):>8.1f}{max(found):>8.1f}"
            f"{ratio:>8.2f}"
        )


def main() -> None:
    """Print one table an engine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--encoder", default="tf_efficientnetv2_b0")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    encoder = build_encoder(options.encoder, weights="random", pool="area")
    images = torch.rand(options.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    images[..., :20, :] = 0
    detectors = models(encoder)
    print(f"{options.encoder}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for engine in ENGINES:
            networks = {}
            for number, (name, detector) in enumerate(detectors.items()):
                path = Path(folder) / f"{number}.onnx"
                if not path.exists():
                    export_model(detector, path)
                networks[name] = open_network(detector, engine=engine, path=path)
            print(f"{engine}: slices/s, least, most, ratio to the head")
            timed(networks, images, options.repeats)


if __name__ == "__main__":
    main()
