"""Train on healthy slices of real FLAIR studies and measure every scoring option on lesions.

    python benchmarks/flair_lgg.py DATA --encoder tf_efficientnetv2_b0 --weights FILE.safetensors

DATA holds one folder a patient with ``flair.nii.gz`` and ``mask.nii.gz`` (TCGA-LGG; masks: Buda,
Saha, Mazurowski, Comput Biol Med 2019). Protocol: patients sorted by name and permuted by
``default_rng(0)``, the first 50 train, the last 30 test; of n slices those from ⌊0.29 n⌋ to
⌊0.83 n⌋; train on slices with an empty mask; test on slices with an empty mask (good) and with at
least 50 lesion voxels (anomalous). Pixels are those of the 224 × 224 network grid. Nothing is
chosen on the test part: the weights are those of the last epoch, and all options are printed.
Options are chosen with ``--part validation``, which never looks at the test patients.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from peers import nearest_neighbour, position_gaussian
from torch import Tensor
from torch.utils.data import DataLoader

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import iterate_slices
from mcmiad_monai.data.volumes import find_cases
from mcmiad_monai.engines import HeadTrainer, learning_rate_schedule
from mcmiad_monai.handlers import TrainingProgress
from mcmiad_monai.losses import ReconstructionLoss
from mcmiad_monai.metrics import PixelAUROC, auroc
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.networks.head import MCMIADHead, build_head
from mcmiad_monai.networks.text_prior import resolve_text_prior
from mcmiad_monai.scoring import AnomalyScore

SLICE_RANGE = (0.29, 0.83)
TRAIN_PATIENTS, VALIDATION_FROM, MIN_LESION = 50, 40, 50
SCORES: dict[str, dict[str, Any]] = {
    "S_MSE + S_cos (Eq. 6)": {},
    "S_MSE, sum": {"terms": "mse"},
    "S_cos": {"terms": "cos"},
    "0.7 S_MSE, mean + 0.3 S_cos": {"mse_weight": 0.7, "mse_reduction": "mean"},
    "S_cos, smoothed 4 px": {"terms": "cos", "smooth_sigma": 4.0},
    "S_MSE, smoothed 4 px": {"terms": "mse", "smooth_sigma": 4.0},
}


def main() -> None:
    """Train one head and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="tf_efficientnet_b4.aa_in1k")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--text-prior", default="hashing")
    parser.add_argument("--pool", default="bilinear", choices=["bilinear", "area"])
    parser.add_argument("--standardize", action="store_true")
    parser.add_argument("--stage-weights", type=float, nargs="+")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ffn-per-round", type=int, default=1, choices=[1, 2])
    parser.add_argument("--cosine-weight", type=float, default=0.0, help="cosine term of the loss")
    parser.add_argument(
        "--part",
        default="test",
        choices=["test", "validation"],
        help="validation: train on 40 of the 50 training patients and measure on the other 10",
    )
    parser.add_argument("--peers", action="store_true", help="also the scores of other ideas")
    parser.add_argument("--out", type=Path, help="also write the table as JSON")
    options = parser.parse_args()

    cases = sorted(find_cases(options.data), key=lambda case: Path(case["image"]).parent.name)
    order = np.random.default_rng(0).permutation(len(cases))
    ordered = [cases[i] for i in order]
    train, test = ordered[:TRAIN_PATIENTS], ordered[TRAIN_PATIENTS:]
    if options.part == "validation":
        train, test = train[:VALIDATION_FROM], train[VALIDATION_FROM:]

    encoder = build_encoder(options.encoder, weights=options.weights, pool=options.pool)
    kept = {"modality": "brain_mri", "slice_range": SLICE_RANGE, "min_foreground": 0.0}
    training = FeatureDataset(train, encoder, only_normal=True, **kept)
    testing = FeatureDataset(test, encoder, **kept)
    head, steps, seconds = train_head(options, encoder, training)

    rows, labels = protocol(testing, test)
    table = {"raw intensity": intensity(test, testing, rows, labels)}
    with torch.inference_mode():
        if options.peers:
            for peer in (nearest_neighbour, position_gaussian):
                maps = peer(training, testing)
                table[peer.__name__.replace("_", " ")] = measure(maps, testing, rows, labels)
        for name, score in SCORES.items():
            scorer = AnomalyScore(
                **score,
                stage_weights=options.stage_weights,
                stage_channels=encoder.stage_channels,
            )
            table[name] = measure(scored(head, scorer, testing), testing, rows, labels)
    good, anomalous = int((~labels).sum()), int(labels.sum())
    print(f"{options.encoder}, pool {options.pool}, standardised {options.standardize}")
    print(f"stage weights {options.stage_weights}, {steps} steps in {seconds:.0f} s")
    print(f"{len(training)} training slices; {options.part}: {good} good, {anomalous} anomalous")
    print(f"{'score':<30}{'slice Eq. 7':>12}{'slice max':>12}{'pixel':>12}")
    for name, (eq7, top, pixel) in table.items():
        print(f"{name:<30}{eq7:>12.3f}{top:>12.3f}{pixel:>12.3f}")
    if options.out:
        content = {"options": vars(options), "steps": steps, "table": table}
        options.out.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


def train_head(
    options: argparse.Namespace, encoder: Any, training: FeatureDataset
) -> tuple[MCMIADHead, int, float]:
    """Train a head as the bundle does, without validation."""
    head = build_head(
        seed=options.seed,
        in_channels=encoder.out_channels,
        stage_channels=encoder.stage_channels,
        grid=encoder.grid,
        prior=resolve_text_prior(options.text_prior, normal_prompts()),
        standardize_features=options.standardize,
        ffn_per_round=options.ffn_per_round,
    )
    if options.standardize:
        head.set_feature_statistics(*training.statistics())
    loader = DataLoader(training, batch_size=options.batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    steps = options.epochs * len(loader)
    trainer = HeadTrainer(
        device="cpu",
        max_epochs=options.epochs,
        train_data_loader=loader,
        network=head,
        optimizer=optimizer,
        loss_function=ReconstructionLoss(
            cosine_weight=options.cosine_weight,
            stage_weights=options.stage_weights,
            stage_channels=encoder.stage_channels,
        ),
        lr_scheduler=learning_rate_schedule(optimizer, kind="cosine", total_steps=steps),
        seed=options.seed,
        train_handlers=[TrainingProgress()],
    )
    start = time.monotonic()
    trainer.run()
    return head.eval(), steps, time.monotonic() - start


def protocol(dataset: FeatureDataset, cases: list[dict[str, Any]]) -> tuple[list[int], np.ndarray]:
    """Rows of the dataset that count, and whether each is anomalous."""
    voxels = {
        case["case"]: np.asarray(nib.load(case["label"]).dataobj).sum((0, 1)) for case in cases
    }
    counts = np.array([voxels[r.case][r.index] for r in dataset.records])
    rows = np.flatnonzero((counts == 0) | (counts >= MIN_LESION))
    return rows.tolist(), counts[rows] > 0


def scored(
    head: MCMIADHead, scorer: AnomalyScore, dataset: FeatureDataset
) -> Callable[[list[int]], Tensor]:
    """Heatmaps (n, 1, S, S) of rows."""

    def maps(rows: list[int]) -> Tensor:
        output = head(dataset.batch(rows))
        size = (dataset.size, dataset.size)
        return scorer(output.target, output.reconstruction, size)

    return maps


def measure(
    maps: Callable[[list[int]], Tensor],
    dataset: FeatureDataset,
    rows: list[int],
    labels: np.ndarray,
) -> tuple[float, float, float]:
    """Slice AUROC by Eq. 7 and by the maximum, and pixel AUROC, all within the foreground."""
    pixel, eq7, top = PixelAUROC(), [], []
    for start in range(0, len(rows), 32):
        chosen = rows[start : start + 32]
        inside = dataset.foreground(chosen)
        heat = maps(chosen) * inside
        eq7.append(AnomalyScore().slice_score(heat, inside))
        top.append(heat.amax((1, 2, 3)))
        pixel.update((heat, dataset.lesion(chosen)))
    return (
        auroc(torch.cat(eq7).numpy(), labels),
        auroc(torch.cat(top).numpy(), labels),
        pixel.compute(),
    )


def intensity(
    cases: list[dict[str, Any]], dataset: FeatureDataset, rows: list[int], labels: np.ndarray
) -> tuple[float, float, float]:
    """The baseline without a model: bright is anomalous."""
    samples = iterate_slices(cases, "brain_mri", slice_range=SLICE_RANGE, min_foreground=0.0)
    images = {(s.case, s.index): s.image for s in samples}
    keys = [(r.case, r.index) for r in dataset.records]
    return measure(
        lambda chosen: torch.stack([images[keys[i]] for i in chosen]), dataset, rows, labels
    )


if __name__ == "__main__":
    main()
