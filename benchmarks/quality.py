"""What the quality benchmarks share: our scores, the peers' and raw intensity, measured alike."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import Maps, nearest_neighbour, position_gaussian
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.bootstrap import bootstrap_auroc
from mcmiad_monai.metrics.curves import auroc
from mcmiad_monai.metrics.pixels import PixelMetrics
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.encoder import FrozenEncoder, build_encoder
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import resolve_text_prior
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.protocols.scores import SCORES
from mcmiad_monai.training.fit import fit_head
from mcmiad_monai.training.method import Method

#: Slice scores: Eq. 7, the maximum, and the mean of the hottest 5 % of the foreground.
HOTTEST = 0.05


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the method and of the run."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="tf_efficientnet_b4.aa_in1k")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--text-prior", default="hashing")
    parser.add_argument("--pool", default="bilinear", choices=["bilinear", "area"])
    parser.add_argument("--standardize", action="store_true")
    parser.add_argument("--stage-weights", type=float, nargs="+")
    parser.add_argument("--cosine-weight", type=float, default=0.0, help="cosine term of the loss")
    parser.add_argument("--jitter", type=float, default=20.0)
    parser.add_argument("--jitter-position", default="fused", choices=["fused", "features"])
    parser.add_argument("--no-text-fusion", action="store_true")
    parser.add_argument("--ffn-per-round", type=int, default=1, choices=[1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--peers", action="store_true", help="also the scores of other ideas")
    parser.add_argument("--anomalib", action="store_true", help="also anomalib's own PatchCore")
    parser.add_argument("--cache", type=Path, help="keep features here")
    parser.add_argument("--out", type=Path, help="also write the table as JSON")


def method_of(options: argparse.Namespace) -> Method:
    """Method that the options describe."""
    return Method(
        encoder_name=options.encoder,
        weights=options.weights,
        pool=options.pool,
        text_prior=options.text_prior,
        stage_weights=tuple(options.stage_weights) if options.stage_weights else None,
        cosine_weight=options.cosine_weight,
        head={
            "standardize_features": options.standardize,
            "jitter_scale": options.jitter,
            "jitter_position": options.jitter_position,
            "use_text_fusion": not options.no_text_fusion,
            "ffn_per_round": options.ffn_per_round,
        },
        max_epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        min_steps_per_epoch=1,
    )


def encoder_of(options: argparse.Namespace) -> FrozenEncoder:
    """Encoder with weights."""
    return build_encoder(options.encoder, weights=options.weights, pool=options.pool)


def our_maps(
    options: argparse.Namespace, training: FeatureDataset, testing: FeatureDataset, seed: int
) -> tuple[dict[str, Maps], int, float]:
    """Train once; heatmaps of every scoring option, steps and seconds of training."""
    method, encoder = method_of(options), training.encoder
    prior = resolve_text_prior(method.text_prior, normal_prompts())
    start = time.monotonic()
    head, steps = fit_head(method, training, prior, seed=seed)
    seconds = time.monotonic() - start

    def maps_of(name: str) -> Maps:
        scorer = method.build_score(encoder, **SCORES[name])

        def maps(rows: list[int]) -> Tensor:
            output = head(testing.batch(rows))
            return scorer(output.target, output.reconstruction, (testing.size, testing.size))

        return maps

    return {name: maps_of(name) for name in SCORES}, steps, seconds


def peer_maps(
    options: argparse.Namespace, training: FeatureDataset, testing: FeatureDataset
) -> dict[str, Maps]:
    """Heatmaps of the other ideas on the same features."""
    found: dict[str, Maps] = {}
    if options.peers:
        found["nearest neighbour, every token"] = nearest_neighbour(training, testing)
        found["Gaussian at each position"] = position_gaussian(training, testing)
    if options.anomalib:
        from peers_anomalib import patchcore

        found["anomalib PatchCore, 10 % coreset"] = patchcore(training, testing)
    return found


@torch.inference_mode()
def measure(
    maps: Maps,
    dataset: FeatureDataset,
    rows: list[int],
    labels: np.ndarray | None,
) -> dict[str, Any]:
    """Slice and pixel figures within the foreground; no slice figures without labels (n,)."""
    pixels, plain = PixelMetrics(), AnomalyScore()
    slices: dict[str, list[Tensor]] = {"eq7": [], "max": [], "hottest": []}
    for start in range(0, len(rows), 32):
        chosen = rows[start : start + 32]
        inside = dataset.foreground(chosen)
        heat = maps(chosen) * inside
        slices["eq7"].append(plain.slice_score(heat, inside))
        slices["max"].append(heat.amax((1, 2, 3)))
        slices["hottest"].append(
            torch.stack([hottest(*one) for one in zip(heat, inside, strict=True)])
        )
        pixels.update((heat, dataset.lesion(chosen)))
    figures = pixels.compute()
    del figures["pixel_dice_at_threshold"], figures["pixel_f1_max_threshold"]
    if labels is not None:
        patients = [dataset.records[row].patient for row in rows]
        for name, parts in slices.items():
            scores = torch.cat(parts).numpy()
            figures[f"slice_{name}"] = auroc(scores, labels)
        interval = bootstrap_auroc(torch.cat(slices["max"]).numpy(), labels, patients)
        figures["slice_max_interval"] = [interval.low, interval.high]
    return figures


def hottest(heat: Tensor, inside: Tensor) -> Tensor:
    """Mean of the hottest share of the foreground of one slice."""
    pixels = heat[inside]
    return pixels.topk(max(1, int(HOTTEST * pixels.numel()))).values.mean()


def over_seeds(tables: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean of every figure over seeds, with ``<figure>_sd`` where there are several."""
    merged: dict[str, dict[str, Any]] = {}
    for name in tables[0]:
        rows = [table[name] for table in tables]
        merged[name] = dict(rows[0])
        if len(rows) > 1:
            for key, value in rows[0].items():
                if isinstance(value, float):
                    values = [row[key] for row in rows]
                    merged[name][key] = float(np.mean(values))
                    merged[name][f"{key}_sd"] = float(np.std(values, ddof=1))
    return merged


def show(table: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> None:
    """One line a score."""
    print(f"{'score':<36}" + "".join(f"{name:>16}" for name in columns))
    for name, figures in table.items():
        cells = []
        for column in columns:
            spread = figures.get(f"{column}_sd")
            tail = "" if spread is None else f" ±{spread:.3f}"
            cells.append(f"{figures[column]:.3f}{tail}" if column in figures else "-")
        print(f"{name:<36}" + "".join(f"{cell:>16}" for cell in cells))


def write(path: Path | None, options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Everything that the table rests on, as JSON."""
    if path is not None:
        kept = {k: v for k, v in vars(options).items() if k not in ("data", "out", "cache")}
        kept["weights"] = Path(options.weights).name
        report = {"options": kept, **content, **produced_with()}
        path.write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")


def cached(options: argparse.Namespace) -> dict[str, Any]:
    """Where features are kept."""
    return {"cache": "disk", "cache_dir": options.cache} if options.cache else {}
