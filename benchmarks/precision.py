"""What bfloat16 changes in a trained model: speed, heat, AUROC and thresholds, by engine.

    python benchmarks/precision.py my_model/models/model.pt /data/test [--slices 400]

DATA holds studies with lesion masks, healthy slices among them. Every form reads the same slices.
The pixel threshold is the heat that 0.5 % of the foreground of slices without lesion exceed, the
slice threshold the score that 5 % of them exceed: what each form would set by itself, in units of
the package's own. `above 1` is the share of normal foreground above the package's threshold, which
was set in float32. The largest difference of heat is in units of that threshold.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from engines import FORMS
from torch import Tensor, nn

from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.data.studies import SliceSample, batches, iterate_slices, stack_images
from mcmiad_monai.metrics.pixels import PixelMetrics
from mcmiad_monai.metrics.slices import SliceAUROC
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.networks.score import foreground_of
from mcmiad_monai.runtime.export import export_model
from mcmiad_monai.runtime.open import open_network
from mcmiad_monai.transforms import preprocessing

FIGURES = (
    "slices/s",
    "max diff",
    "mean diff",
    "slice AUROC",
    "pixel AUROC",
    "pixel AP",
    "pixel thr.",
    "slice thr.",
    "above 1, %",
)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--slices", type=int, default=400)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    detector = load_package(options.model)
    samples = slices_of(detector, options.data, options.slices)
    with tempfile.TemporaryDirectory() as folder:
        path = export_model(detector, Path(folder) / "model.onnx")
        print(f"{len(samples)} slices, {sum(s.anomalous for s in samples)} with lesion")
        print(f"{'form':<24}" + "".join(f"{figure:>13}" for figure in FIGURES))
        reference: Tensor | None = None
        for engine, precision in FORMS:
            network = open_network(
                copy.deepcopy(detector), engine=engine, path=path, precision=precision
            )
            heat, rate = heat_of(network, samples)
            reference = heat if reference is None else reference
            line = figures(heat, reference, samples, detector.score.slice_score)
            print(f"{engine + ' ' + precision:<24}" + "".join(f"{v:>13.4f}" for v in (rate, *line)))


def slices_of(detector: MCMIADDetector, data: Path, limit: int) -> list[SliceSample]:
    """Evenly chosen slices of the studies, as the model was trained to see them."""
    trained = detector.trained_with
    cases = find_studies(data, split="all", modality=trained["modality"])
    found = iterate_slices(
        cases,
        trained["modality"],
        slice_range=tuple(trained["slice_range"]),
        context=detector.context,
        transform=preprocessing(trained["modality"], mask_key="label", **detector.image_options),
    )
    every = list(found)
    step = max(1, len(every) // limit)
    return list(itertools.islice(every, 0, None, step))


@torch.inference_mode()
def heat_of(network: nn.Module, samples: list[SliceSample]) -> tuple[Tensor, float]:
    """Heat (N, 1, S, S), zero outside the foreground, and slices a second."""
    network(stack_images(samples[:2]))
    start = time.perf_counter()
    maps = [network(stack_images(group)) for group in batches(samples, 16)]
    rate = len(samples) / (time.perf_counter() - start)
    return torch.cat(maps) * foreground_of(stack_images(samples)), rate


def figures(
    heat: Tensor, reference: Tensor, samples: list[SliceSample], score: Any
) -> tuple[float, ...]:
    """All but the first of `FIGURES`."""
    lesion = torch.stack([torch.as_tensor(s.lesion) for s in samples])
    inside = foreground_of(stack_images(samples))
    labels = torch.tensor([s.anomalous for s in samples])
    pixels, slices = PixelMetrics(), SliceAUROC()
    pixels.update((heat, lesion))
    scores = score(heat, inside)
    slices.update((scores, labels.long()))
    told = pixels.compute()
    normal = heat[~labels][inside[~labels]]
    difference = (heat - reference).abs()
    return (
        float(difference.max()),
        float(difference[inside].mean()),
        slices.compute(),
        told["pixel_auroc"],
        told["pixel_ap"],
        float(normal.sort().values[int(0.995 * len(normal))]),
        float(scores[~labels].quantile(0.95)),
        100 * float((normal > 1).float().mean()),
    )


if __name__ == "__main__":
    main()
