"""What a study gives under a condition of a stress test, its place on disk, and the figures."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.files import save_torch
from mcmiad_monai.inference.cohort import to_plain
from mcmiad_monai.inference.evaluation import Slices, pixel_pairs, study_slices
from mcmiad_monai.inference.outputs import HEATMAP_THRESHOLD
from mcmiad_monai.metrics import ScoreHistogram, auroc, histogram_auroc
from mcmiad_monai.networks.score import volume_score
from mcmiad_monai.research.robustness.corruptions import Corruption
from mcmiad_monai.transforms.metadata import plain

logger = logging.getLogger(__name__)

#: Name of the condition without any corruption.
CLEAN = "clean"
#: Resolution of the stored pixel histograms: bins of 0.4 %, some 10 kB a study and condition.
PIXEL_BITS = 8
Result = dict[str, Any]


@dataclass(frozen=True)
class Condition:
    """A corruption at a severity; the study as it is where there is none.

    Attributes
    ----------
    corruption : Corruption or None
    severity : int
        0 without a corruption.
    """

    corruption: Corruption | None = None
    severity: int = 0

    @property
    def name(self) -> str:
        """Name of the corruption."""
        return CLEAN if self.corruption is None else self.corruption.name

    @property
    def level(self) -> float:
        """Strength in the corruption's unit."""
        return 0.0 if self.corruption is None else self.corruption.level(self.severity)

    @property
    def key(self) -> str:
        """What tells its results from those of others, also where levels were redefined."""
        return f"{self.name}/{self.level:g}"


def study_result(item: Mapping[str, Any], which: Slices) -> Result:
    """What is kept of a study under a condition: tensors and numbers, some 10 kB.

    Parameters
    ----------
    item : mapping
        ``image``, ``label`` and ``pred``, (1, X, Y, Z) each, as an evaluation has them.
    which : Slices
        Slices that count.

    Raises
    ------
    ValueError
        If a score is negative or not finite.
    """
    scores, labels, chosen = study_slices(item, which)
    heat, truth = (plain(part) for part in pixel_pairs(which)([dict(item)]))
    hot, pixels = _false_positive_pixels(item, which, plain(chosen[~labels]))
    return {
        "scores": plain(scores).double(),
        "labels": plain(labels),
        "lesion": _sparse(heat[truth > 0]),
        "normal": _sparse(heat[truth <= 0]),
        "pixels": [hot, pixels],
    }


class Tally:
    """Figures of a condition over studies, in memory that does not grow with their pixels."""

    def __init__(self) -> None:
        self.studies: list[dict[str, Any]] = []
        self.passed_over: list[str] = []  # cases that cannot show the corruption
        self.slices: list[tuple[float, bool]] = []
        self.lesion, self.normal = ScoreHistogram(PIXEL_BITS), ScoreHistogram(PIXEL_BITS)
        self.hot_pixels, self.normal_pixels = 0, 0

    def add(self, case: Mapping[str, Any], result: Result | None) -> None:
        """Count the result of a case; None is a case that cannot show the corruption."""
        name = str(case["case"])
        if result is None:
            self.passed_over.append(name)
            return
        scores, labels = result["scores"], result["labels"]
        self.slices += list(zip(scores.tolist(), labels.tolist(), strict=True))
        for histogram, kind in ((self.lesion, "lesion"), (self.normal, "normal")):
            bins, counts = result[kind]
            histogram.counts[bins.long()] += counts
        self.hot_pixels += result["pixels"][0]
        self.normal_pixels += result["pixels"][1]
        self.studies.append(
            {
                "case": name,
                "patient": patient_of(dict(case)),
                "slices": int(labels.numel()),
                "anomalous_slices": int(labels.sum()),
                # in float32, as an evaluation has it
                "volume_score": float(volume_score(scores.float())) if scores.numel() else 0.0,
            }
        )

    def figures(self, calibration: Calibration | None) -> dict[str, Any]:
        """AUROCs, and rates at the thresholds with their counts; None is undefined."""
        # a study of which no slice was looked at has no score, as in an evaluation
        scored = [s for s in self.studies if s["slices"]]
        volumes = [(s["volume_score"], s["anomalous_slices"] > 0) for s in scored]
        limits = (math.inf, math.inf)
        if calibration is not None:
            limits = (calibration.volume_threshold, calibration.slice_threshold)
        hot = None if calibration is None else self.hot_pixels
        figures = {
            "studies": len(self.studies),
            "not_applicable": len(self.passed_over),
            "volume_auroc": _auroc(volumes),
            "slice_auroc": _auroc(self.slices),
            "pixel_auroc": histogram_auroc(self.lesion.counts, self.normal.counts),
            **_rates("volume", volumes, limits[0]),
            **_rates("slice", self.slices, limits[1]),
            "pixel_false_positive_rate": _share(hot, self.normal_pixels),
            "pixel_false_positives": hot,
            "normal_pixels": self.normal_pixels,
        }
        return {name: to_plain(value) for name, value in figures.items()}


class Store:
    """Results between runs, one file a study, so that studies and conditions can be added.

    Parameters
    ----------
    folder : path
    options : mapping
        What all results depend on, fit for JSON. Results of other options are not used.
    """

    def __init__(self, folder: str | Path, options: Mapping[str, Any]) -> None:
        self.folder, self.options = Path(folder), dict(options)

    def load(self, case: Mapping[str, Any]) -> dict[str, Result | None]:
        """Results of a study by the key of the condition, as far as there are any."""
        path = self._path(case)
        if not path.is_file():
            return {}
        try:
            content = torch.load(path, weights_only=True)
            if content["fingerprint"] == self._fingerprint(case):
                results: dict[str, Result | None] = content["results"]
                return results
            reason = "was made with another model, study or options"
        except Exception as error:
            reason = f"cannot be read ({type(error).__name__})"
        logger.warning("%s %s; the study is run anew", path, reason)
        return {}

    def save(self, case: Mapping[str, Any], results: Mapping[str, Result | None]) -> None:
        """Write the results of a study whole or not at all."""
        content = {"fingerprint": self._fingerprint(case), "results": dict(results)}
        save_torch(content, self._path(case))

    def _path(self, case: Mapping[str, Any]) -> Path:
        return self.folder / f"{case['case']}.pt"

    def _fingerprint(self, case: Mapping[str, Any]) -> str:
        text = json.dumps([self.options, _stamp(case)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _stamp(case: Mapping[str, Any]) -> list[str]:
    """What tells a changed case: its values, and size and time of its files."""
    stamp = [f"{key}={case[key]}" for key in sorted(case)]
    for key in ("image", "label"):
        path = Path(str(case.get(key)))
        if case.get(key) is not None and path.exists():
            stat = path.stat()
            stamp.append(f"{stat.st_size}/{stat.st_mtime_ns}")
    return stamp


def _false_positive_pixels(
    item: Mapping[str, Any], which: Slices, normal: Tensor
) -> tuple[int, int]:
    """Foreground pixels of slices without lesion: above the threshold, and all."""
    heat, image = (
        plain(item[key]).index_select(1 + which.axis, normal) for key in ("pred", "image")
    )
    inside = image > 0
    return int(((heat > HEATMAP_THRESHOLD) & inside).sum()), int(inside.sum())


def _auroc(pairs: list[tuple[float, bool]]) -> float:
    return auroc([score for score, _ in pairs], [int(label) for _, label in pairs])


def _rates(what: str, pairs: list[tuple[float, bool]], threshold: float) -> dict[str, Any]:
    """False positives and detections at a threshold; None where it could not be set."""
    scores, labels = (np.array(part) for part in zip(*pairs, strict=True)) if pairs else ([], [])
    truth = np.asarray(labels, dtype=bool)
    above = np.asarray(scores, dtype=np.float64) > threshold
    finite = math.isfinite(threshold)
    wrong = int((above & ~truth).sum()) if finite else None
    found = int((above & truth).sum()) if finite else None
    return {
        f"{what}_false_positive_rate": _share(wrong, int((~truth).sum())),
        f"{what}_false_positives": wrong,
        f"normal_{what}s": int((~truth).sum()),
        f"{what}_sensitivity": _share(found, int(truth.sum())),
        f"{what}_detections": found,
        f"anomalous_{what}s": int(truth.sum()),
    }


def _share(part: int | None, whole: int) -> float | None:
    return None if part is None or whole == 0 else part / whole


def _sparse(scores: Tensor) -> list[Tensor]:
    """Bins of a histogram of scores that are not empty, and their counts."""
    histogram = ScoreHistogram(PIXEL_BITS)
    histogram.update(scores)
    bins = torch.nonzero(histogram.counts).flatten()
    return [bins.int(), histogram.counts[bins]]
