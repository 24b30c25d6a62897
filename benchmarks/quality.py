"""What the quality benchmarks share: our scores, the peers' and raw intensity, measured alike."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.transforms import Compose
from peers import Maps, nearest_neighbour, position_gaussian, upsampled
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.metrics.bootstrap import (
    DRAWS,
    aurocs,
    draw_patients,
    percentile_interval,
)
from mcmiad_monai.metrics.curves import auroc
from mcmiad_monai.metrics.pixels import PixelMetrics
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.networks.text_prior import resolve_text_prior
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.protocols.scores import SCORES
from mcmiad_monai.training.fit import fit_head
from mcmiad_monai.training.method import PRESETS, Method, preset
from mcmiad_monai.transforms import preprocessing

#: Eq. 7, the maximum, and the mean of the hottest share of the foreground.
SLICE_SCORES = ("eq7", "max", "hottest")
HOTTEST = 0.05
#: What the others are compared with: the score of the bundles.
OURS = "S_cos"
SMOOTH_SIGMA = SCORES["S_cos, smoothed"]["smooth_sigma"]
#: Of the other ideas, and whether their tokens have one length.
DISTANCES = {"L2": False, "cosine": True}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the method and of the run."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="tf_efficientnet_b4.aa_in1k")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--text-prior", default="hashing")
    parser.add_argument("--preset", default="default", choices=sorted(PRESETS))
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="NAME=VALUE",
        type=setting,
        action="append",
        default=[],
        help="an option of the method; may be repeated",
    )
    parser.add_argument("--epochs", type=int, default=80)
    seeds = "of our head; --seeds alone trains none and leaves its rows out"
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help=seeds)
    parser.add_argument("--peers", action="store_true", help="also the scores of other ideas")
    parser.add_argument("--anomalib", action="store_true", help="also anomalib's own PatchCore")
    parser.add_argument("--cache", type=Path, help="keep features here")
    parser.add_argument("--checkpoints", type=Path, help="keep heads here, and go on from them")
    parser.add_argument("--out", type=Path, help="also write the table as JSON")


def setting(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` with a YAML value."""
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def method_of(options: argparse.Namespace) -> Method:
    """Method that the options describe."""
    given = {
        "encoder_name": options.encoder,
        "weights": options.weights,
        "text_prior": options.text_prior,
        "max_epochs": options.epochs,
        "min_steps_per_epoch": 1,
    }
    return preset(options.preset, **{**given, **dict(options.overrides)})


def encoder_of(options: argparse.Namespace) -> FrozenEncoder:
    """Encoder with weights."""
    return method_of(options).build_encoder()


def images_of(options: argparse.Namespace, modality: str) -> Compose:
    """Transforms of a case that the method's images need."""
    return preprocessing(modality, mask_key="label", **method_of(options).image_options)


def our_maps(
    options: argparse.Namespace, training: FeatureDataset, testing: FeatureDataset, seed: int
) -> tuple[dict[str, Maps], int, float]:
    """Train once; heatmaps of every scoring option, steps and seconds of training."""
    method, encoder = method_of(options), training.encoder
    prior = resolve_text_prior(method.text_prior, normal_prompts())
    start = time.monotonic()
    kept = checkpoints_of(options, training, seed)
    head, steps = fit_head(method, training, prior, seed=seed, checkpoints=kept)
    seconds = time.monotonic() - start

    def maps_of(name: str) -> Maps:
        scorer = method.build_score(encoder, **SCORES[name])

        def maps(rows: list[int]) -> Tensor:
            output = head(testing.batch(rows))
            return scorer(output.target, output.reconstruction, (testing.size, testing.size))

        return maps

    return {name: maps_of(name) for name in SCORES}, steps, seconds


def checkpoints_of(options: argparse.Namespace, training: FeatureDataset, seed: int) -> Path | None:
    """Folder of the checkpoints of this method, data and seed."""
    if options.checkpoints is None:
        return None
    slices = [(record.case, record.index) for record in training.records]
    what = [method_of(options).to_dict(), training.encoder.provenance, slices, seed]
    digest = hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()
    folder: Path = options.checkpoints / digest[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def peer_maps(
    options: argparse.Namespace, training: FeatureDataset, testing: FeatureDataset
) -> dict[str, Maps]:
    """Heatmaps of the other ideas on the same features, with our distances and our smoothing."""
    found: dict[str, Maps] = {}
    ideas = {"nearest neighbour": nearest_neighbour, "Gaussian at each position": position_gaussian}
    for idea, fit in ideas.items() if options.peers else ():
        for distance, cosine in DISTANCES.items():
            maps = kept_maps(fit(training, testing, cosine=cosine), len(testing))
            for ending, sigma in {"": 0.0, ", smoothed": SMOOTH_SIGMA}.items():
                found[f"{idea}, {distance}{ending}"] = upsampled(maps, testing.size, sigma)
    if options.anomalib:
        from peers_anomalib import patchcore

        for distance, cosine in DISTANCES.items():
            maps = patchcore(training, testing, cosine=cosine)
            found[f"anomalib PatchCore, 10 % coreset, {distance}"] = maps
    return found


def kept_maps(maps: Maps, count: int) -> Maps:
    """The same maps of all rows, computed once."""
    chunks = torch.arange(count).split(32)
    everything = torch.cat([maps(chunk.tolist()) for chunk in chunks])
    return lambda rows: everything[rows]


@torch.inference_mode()
def measure(
    maps: Maps,
    dataset: FeatureDataset,
    rows: list[int],
    labels: np.ndarray | None,
) -> dict[str, Any]:
    """Slice and pixel figures within the foreground; no slice figures without labels (n,)."""
    pixels, plain = PixelMetrics(), AnomalyScore()
    slices: dict[str, list[Tensor]] = {name: [] for name in SLICE_SCORES}
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
        for name, parts in slices.items():
            scores = torch.cat(parts).numpy()
            figures[f"slice_{name}"] = auroc(scores, labels)
            figures[f"scores_{name}"] = scores  # until `add_intervals`
    return figures


def hottest(heat: Tensor, inside: Tensor) -> Tensor:
    """Mean of the hottest share of the foreground of one slice."""
    pixels = heat[inside]
    return pixels.topk(max(1, int(HOTTEST * pixels.numel()))).values.mean()


def over_seeds(tables: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean of every figure over seeds, with ``<figure>_sd`` where there are several."""
    merged: dict[str, dict[str, Any]] = {}
    for name in tables[0] if tables else ():
        rows = [table[name] for table in tables]
        merged[name] = dict(rows[0])
        for key, value in rows[0].items():
            values = np.array([row[key] for row in rows])
            if isinstance(value, np.ndarray):
                merged[name][key] = values  # (seeds, n)
            elif len(rows) > 1:
                merged[name][key] = float(values.mean())
                merged[name][f"{key}_sd"] = float(values.std(ddof=1))
    return merged


def add_intervals(
    table: dict[str, dict[str, Any]], labels: np.ndarray, patients: list[str]
) -> None:
    """Intervals over patients of the slice AUROCs, and of their difference to our own score.

    The scores of slices, which they are computed from, leave the table. Of several seeds the AUROC
    is the mean, in every draw of patients.
    """
    _, member = np.unique(patients, return_inverse=True)  # (n,)
    drawn = draw_patients(int(member.max()) + 1, DRAWS, seed=0)  # (draws, patients)
    weights = np.concatenate([np.ones((1, len(labels))), drawn[:, member]])  # (1 + draws, n)
    for name in SLICE_SCORES:
        found = {
            row: np.mean(
                [drawn_aurocs(s, labels, weights) for s in np.atleast_2d(f.pop(f"scores_{name}"))],
                axis=0,
            )
            for row, f in table.items()
        }  # (1 + draws,) each
        for row, values in found.items():
            table[row][f"slice_{name}_interval"] = ends(values, len(drawn[0]))
            if OURS in table and row not in SCORES:
                away = values - found[OURS]
                table[row][f"slice_{name}_minus_ours"] = float(away[0])
                table[row][f"slice_{name}_minus_ours_interval"] = ends(away, len(drawn[0]))


def drawn_aurocs(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of scores (n,) with each weighting (draws, n) of the slices."""
    order = np.argsort(scores, kind="stable")
    ranked, weights = scores[order], weights[:, order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    positive, negative = (
        np.add.reduceat(weights * kind[order], starts, axis=1) for kind in (labels, ~labels)
    )
    return aurocs(positive, negative)


def ends(values: np.ndarray, patients: int) -> list[float]:
    """Ends of the 95 % interval of (1 + draws,) values, the first of which is over all patients."""
    found = percentile_interval(float(values[0]), values[1:].tolist(), 0.95, patients)
    return [found.low, found.high]


def show(table: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> None:
    """One line a score."""
    print(f"{'score':<44}" + "".join(f"{name:>16}" for name in columns))
    for name, figures in table.items():
        cells = []
        for column in columns:
            spread = figures.get(f"{column}_sd")
            tail = "" if spread is None else f" ±{spread:.3f}"
            cells.append(f"{figures[column]:.3f}{tail}" if column in figures else "-")
        print(f"{name:<44}" + "".join(f"{cell:>16}" for cell in cells))


def write(path: Path | None, options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Everything that the table rests on, as JSON."""
    if path is not None:
        kept = {
            k: v
            for k, v in vars(options).items()
            if k not in ("data", "out", "cache", "checkpoints")
        }
        kept["weights"] = Path(options.weights).name
        report = {"options": kept, **content, **produced_with()}
        path.write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")


def cached(options: argparse.Namespace) -> dict[str, Any]:
    """Where features are kept."""
    return {"cache": "disk", "cache_dir": options.cache} if options.cache else {}
