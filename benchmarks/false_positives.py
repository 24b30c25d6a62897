"""False positives on new normals of real sets: the pixel threshold by patients and other rules.

    python benchmarks/false_positives.py DATA --encoder tf_efficientnetv2_b0 \
        --weights tf_efficientnetv2_b0.imagenet.stride16.safetensors

DATA holds ``brain_flair_lgg`` (as for ``flair_lgg.py``; its slices without lesion) and
``cxr_nih/good`` (chest X-rays "No finding", NIH ChestX-ray8: Wang et al., CVPR 2017). Patients are
split at random, again and again, into those to fit, to calibrate and to measure on. Heat is the
cosine distance to the nearest token of the patients to fit. The channel statistics are those of all
patients, so that one table of cosines serves all splits.

Every rule is also measured with one odd patient among those to calibrate, who has five times the
heat. The splits are of the same patients: their standard deviation is no standard error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from flair_lgg import SLICE_RANGE
from peers import tokens_of
from quality import add_options, cached, encoder_of, images_of, write
from torch import Tensor

from mcmiad_monai.calibration import (
    FALSE_POSITIVE_RATE,
    PIXEL_FALSE_POSITIVE_RATE,
    Calibration,
    conformal_threshold,
)
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.score import AnomalyScore, volume_score
from mcmiad_monai.training.calibrating import NormalHeat, thresholds

RATE, ODD = PIXEL_FALSE_POSITIVE_RATE, 5.0
#: Patients to calibrate with: those of a small training, and enough for a rate of 5 %.
CALIBRATING = (8, 22)


class Patient(NamedTuple):
    """Heat of a normal patient."""

    pixels: np.ndarray  # (n,) of the foreground, ascending
    slices: list[float]  # scores
    volumes: list[float]

    @property
    def quantile(self) -> float:
        """What the chosen share of the pixels exceeds."""
        return float(
            self.pixels[min(len(self.pixels) - 1, math.ceil((1 - RATE) * len(self.pixels)))]
        )

    def above(self, threshold: float) -> float:
        """Share of the pixels above a threshold."""
        return 1 - float(np.searchsorted(self.pixels, threshold, side="right")) / len(self.pixels)

    def hotter(self, factor: float) -> Patient:
        """The same patient with more heat."""
        scores = [[factor * score for score in each] for each in (self.slices, self.volumes)]
        return Patient(self.pixels * factor, *scores)


def pooled(patients: list[Patient]) -> float:
    """The rule before: the quantile of the pixels of all patients together."""
    low, high = 0.0, max(p.pixels[-1] for p in patients)
    count = sum(len(p.pixels) for p in patients)
    for _ in range(40):
        middle = (low + high) / 2
        above = sum(p.above(middle) * len(p.pixels) for p in patients) / count
        low, high = (middle, high) if above > RATE else (low, middle)
    return float(high)


def middle_half(patients: list[Patient]) -> float:
    """Geometric mean of the middle half of the patients' quantiles."""
    ordered = np.sort([math.log(p.quantile) for p in patients])
    cut = len(ordered) // 4
    return math.exp(ordered[cut : len(ordered) - cut].mean())


RULES: dict[str, Callable[[list[Patient]], float]] = {
    "all pixels together (before)": pooled,
    "median of patients (now)": lambda p: calibration_of(p).pixel_threshold,
    "middle half of patients": middle_half,
    "three quarters of patients": lambda p: conformal_threshold([one.quantile for one in p], 0.25),
}


def calibration_of(patients: list[Patient]) -> Calibration:
    """Thresholds that the package sets."""
    heat = NormalHeat()
    for number, patient in enumerate(patients):
        name = str(number)
        heat.patients[name] = patient.quantile
        for volume, scores in enumerate(np.array_split(patient.slices, len(patient.volumes))):
            case = f"{name}.{volume}"
            heat.scores[case], heat.patient_of[case] = scores.tolist(), name
    return thresholds(heat)


def main() -> None:
    """Split, calibrate, measure; print one table a set."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder, report = encoder_of(options), {}
    for name, load in {"brain_flair_lgg": brain, "cxr_nih": chest}.items():
        dataset = load(options, encoder)
        report[name] = measure_set(dataset, options.splits)
        patients = len({r.patient for r in dataset.records})
        print(f"\n{name}: {len(dataset)} normal slices of {patients} patients")
        show(report[name])
    write(options.out, options, {"encoder": encoder.provenance, "sets": report})


def brain(options: argparse.Namespace, encoder: FrozenEncoder) -> FeatureDataset:
    """FLAIR slices without lesion."""
    return FeatureDataset(
        find_cases(options.data / "brain_flair_lgg"),
        encoder,
        modality="brain_mri",
        transform=images_of(options, "brain_mri"),
        only_normal=True,
        slice_range=SLICE_RANGE,
        min_foreground=0.0,
        **cached(options),
    )


def chest(options: argparse.Namespace, encoder: FrozenEncoder) -> FeatureDataset:
    """Chest X-rays without finding, read as the scans of an OCT are: no foreground is cut out."""
    cases = [
        {"case": p.stem, "image": str(p), "anomalous": False, "patient": p.stem.split("_")[0]}
        for p in sorted((options.data / "cxr_nih" / "good").glob("*.png"))
    ]
    return FeatureDataset(
        cases,
        encoder,
        modality="retina_oct",
        transform=images_of(options, "retina_oct"),
        only_normal=True,
        min_foreground=0.0,
        **cached(options),
    )


def measure_set(dataset: FeatureDataset, splits: int) -> dict[str, Any]:
    """Figures of every rule, with `CALIBRATING` patients, with and without an odd one."""
    names = sorted({r.patient for r in dataset.records})
    table = largest_cosines(dataset, names)
    found: dict[str, list[dict[str, float]]] = {}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(names))
        third = len(names) // 3
        fit, rest = order[:third], order[third:]
        nearest = 1 - table[:, fit].amax(1).float()  # (slices, tokens)
        heat = [heat_of(dataset, names[i], nearest) for i in rest]
        for count in CALIBRATING:
            held, fresh = heat[:count], heat[count:]
            for odd in (False, True):
                given = [held[0].hotter(ODD), *held[1:]] if odd else held
                for rule, figures in measure_rules(given, held, fresh).items():
                    key = f"{count} patients{', one odd' if odd else ''} | {rule}"
                    found.setdefault(key, []).append(figures)
    return {key: summary(each) for key, each in found.items()}


def largest_cosines(dataset: FeatureDataset, names: list[str]) -> Tensor:
    """Largest cosine of each token to one of each patient: (slices, patients, tokens) float16."""
    mean, std = dataset.statistics()
    tokens = F.normalize(tokens_of(dataset, list(range(len(dataset))), mean, std), dim=2)
    owners = [r.patient for r in dataset.records]
    table = torch.empty(len(dataset), len(names), tokens.shape[1], dtype=torch.float16)
    banks = [tokens[[o == name for o in owners]].flatten(0, 1) for name in names]
    for row, queries in enumerate(tokens):
        for number, bank in enumerate(banks):
            table[row, number] = (queries @ bank.T).amax(1)
    return table


def heat_of(dataset: FeatureDataset, name: str, nearest: Tensor) -> Patient:
    """Heat of a patient from the distances of all tokens (slices, tokens)."""
    score = AnomalyScore()
    cases: dict[str, list[int]] = {}
    for row, record in enumerate(dataset.records):
        if record.patient == name:
            cases.setdefault(record.case, []).append(row)
    rows = [row for each in cases.values() for row in each]
    grid = dataset.encoder.grid
    distances = nearest[rows].clamp_min(0).reshape(-1, 1, grid, grid)
    inside = dataset.foreground(rows)
    maps = score.upsample(distances, inside.shape[-2:]) * inside
    scores = score.slice_score(maps, inside)
    volumes = [float(volume_score(s)) for s in scores.split([len(r) for r in cases.values()])]
    return Patient(np.sort(maps[inside].numpy()), scores.tolist(), volumes)


def measure_rules(
    given: list[Patient], held: list[Patient], fresh: list[Patient]
) -> dict[str, dict[str, float]]:
    """Figures of each rule on new patients; `held` are those of `given` without the odd one."""
    found = {}
    for rule, threshold_of in RULES.items():
        threshold = threshold_of(given)
        shares = np.array([p.above(threshold) for p in fresh])
        found[rule] = {
            "patients_within": float(np.mean(shares <= RATE)),
            "median_share": float(np.median(shares)),
            "mean_share": float(np.mean(shares)),
            "moved": threshold / threshold_of(held) - 1,
            "log_threshold": math.log(threshold),
        }
    calibration = calibration_of(given)
    unit, now = calibration.pixel_threshold, found["median of patients (now)"]
    for kind, limit in (
        ("slices", calibration.slice_threshold),
        ("volumes", calibration.volume_threshold),
    ):
        if math.isfinite(limit):
            above = [np.mean(np.array(getattr(p, kind)) > limit * unit) for p in fresh]
            now[f"{kind}_above"] = float(np.mean(above))
    if calibration.pixel_interval is not None:
        low, high = calibration.pixel_interval
        now["interval_holds"] = float(low <= np.median([p.quantile for p in fresh]) <= high)
    return found


def summary(figures: list[dict[str, float]]) -> dict[str, float]:
    """Mean over splits, and the spread of threshold and promise."""
    values = {name: np.array([f[name] for f in figures]) for name in figures[0]}
    found = {name: float(value.mean()) for name, value in values.items() if name != "log_threshold"}
    found["threshold_spread"] = float(values["log_threshold"].std())
    found["patients_within_sd"] = float(values["patients_within"].std())
    return found


def show(table: dict[str, dict[str, float]]) -> None:
    """One line a rule."""
    columns = {
        "patients_within": f"patients with <= {RATE:.1%}",
        "median_share": "median share",
        "mean_share": "mean share",
        "threshold_spread": "spread",
        "moved": "moved by odd",
        "slices_above": f"slices ({FALSE_POSITIVE_RATE:.0%})",
        "volumes_above": f"studies ({FALSE_POSITIVE_RATE:.0%})",
        "interval_holds": "interval holds",
    }
    print(f"{'':<52}" + "".join(f"{title:>23}" for title in columns.values()))
    for name, figures in table.items():
        cells = [f"{figures[key]:.2%}" if key in figures else "-" for key in columns]
        print(f"{name:<52}" + "".join(f"{cell:>23}" for cell in cells))


if __name__ == "__main__":
    main()
