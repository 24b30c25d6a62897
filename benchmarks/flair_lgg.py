"""Quality on real FLAIR with real ImageNet features: every scoring option, beside its peers.

    python benchmarks/flair_lgg.py DATA --encoder tf_efficientnetv2_b0 --peers --seeds 0 1 2 \
        --weights tf_efficientnetv2_b0.imagenet.stride16.safetensors

DATA holds one folder a patient with ``flair.nii.gz`` and ``mask.nii.gz`` (TCGA-LGG; masks: Buda,
Saha, Mazurowski, Comput Biol Med 2019). Protocol: patients sorted by name and permuted with
``default_rng(0)``, the first 50 train, the others test; slices from ⌊0.29 n⌋ to below ⌊0.83 n⌋;
train on slices with an empty mask; test on slices with an empty mask (good) and with at least 50
lesion voxels (anomalous). Pixels are those of the 224 × 224 network grid. Nothing is chosen on the
test part: the weights are those of the last epoch, and all options are printed. Options are chosen
with ``--part validation``, which never looks at the test patients.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from quality import (
    add_intervals,
    add_options,
    cached,
    encoder_of,
    images_of,
    measure,
    method_of,
    our_maps,
    over_seeds,
    peer_maps,
    show,
    write,
)

from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.data.studies import iterate_slices

SLICE_RANGE = (0.29, 0.83)
TRAIN_PATIENTS, VALIDATION_FROM, MIN_LESION = 50, 40, 50
COLUMNS = ("slice_eq7", "slice_max", "slice_hottest", "pixel_auroc", "pixel_ap")


def main() -> None:
    """Train, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument(
        "--part",
        default="test",
        choices=["test", "validation"],
        help="validation: train on 40 of the 50 training patients and measure on the other 10",
    )
    options = parser.parse_args()
    train, test = split(options.data, options.part)
    encoder = encoder_of(options)
    kept: dict[str, Any] = {
        "modality": "brain_mri",
        "transform": images_of(options, "brain_mri"),
        "slice_range": SLICE_RANGE,
        "min_foreground": 0.0,
        **cached(options),
    }
    copies = method_of(options).copies
    training = FeatureDataset(train, encoder, only_normal=True, copies=copies, **kept)
    testing = FeatureDataset(test, encoder, **kept)
    rows, labels = protocol(testing, test)

    table = {"raw intensity": measure(intensity(test, testing), testing, rows, labels)}
    for name, maps in peer_maps(options, training, testing).items():
        table[name] = measure(maps, testing, rows, labels)
    each, steps, seconds = [], 0, 0.0
    for seed in options.seeds:
        ours, steps, seconds = our_maps(options, training, testing, seed)
        each.append({k: measure(maps, testing, rows, labels) for k, maps in ours.items()})
    table.update(over_seeds(each))
    add_intervals(table, labels, [testing.records[row].patient for row in rows])

    good, anomalous = int((~labels).sum()), int(labels.sum())
    print(f"{len(training)} training slices; {options.part}: {good} good, {anomalous} anomalous")
    print(f"{steps} steps in {seconds:.0f} s; seeds {options.seeds}")
    show(table, COLUMNS)
    counts = {"training_slices": len(training), "good": good, "anomalous": anomalous}
    provenance = {"encoder": encoder.provenance, "steps": steps, "seconds": seconds}
    write(options.out, options, {"counts": counts, **provenance, "table": table})


def split(data: Path, part: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cases to train on and to measure."""
    cases = sorted(find_cases(data), key=lambda case: Path(case["image"]).parent.name)
    order = np.random.default_rng(0).permutation(len(cases))
    ordered = [cases[i] for i in order]
    train, test = ordered[:TRAIN_PATIENTS], ordered[TRAIN_PATIENTS:]
    if part == "validation":
        train, test = train[:VALIDATION_FROM], train[VALIDATION_FROM:]
    return train, test


def protocol(dataset: FeatureDataset, cases: list[dict[str, Any]]) -> tuple[list[int], np.ndarray]:
    """Rows of the dataset that count, and whether each is anomalous."""
    voxels = {
        case["case"]: np.asarray(nib.load(case["label"]).dataobj).sum((0, 1)) for case in cases
    }
    counts = np.array([voxels[r.case][r.index] for r in dataset.records])
    rows = np.flatnonzero((counts == 0) | (counts >= MIN_LESION))
    return rows.tolist(), counts[rows] > 0


def intensity(cases: list[dict[str, Any]], dataset: FeatureDataset) -> Any:
    """The baseline without a model: bright is anomalous."""
    samples = iterate_slices(cases, "brain_mri", slice_range=SLICE_RANGE, min_foreground=0.0)
    images = {(s.case, s.index): s.image for s in samples}
    keys = [(r.case, r.index) for r in dataset.records]
    return lambda chosen: torch.stack([images[keys[i]] for i in chosen])


if __name__ == "__main__":
    main()
