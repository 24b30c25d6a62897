"""Results of studies under the conditions of a stress test: stored, and summed to figures."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.files import save_torch
from mcmiad_monai.inference.cohort import to_plain
from mcmiad_monai.inference.evaluation import CountedSlices
from mcmiad_monai.inference.outputs import HEATMAP_THRESHOLD
from mcmiad_monai.metrics.histogram import ScoreHistogram, bin_count
from mcmiad_monai.metrics.studies import Scored, StudyFigures
from mcmiad_monai.networks.score import volume_score
from mcmiad_monai.research.robustness.corruptions import Corruption

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
        """Key of its results; another one if the level of a severity is ever redefined."""
        return f"{self.name}/{self.level:g}"

    def to_dict(self) -> dict[str, Any]:
        """Name, severity, level and unit, for a row of the report."""
        unit = None if self.corruption is None else self.corruption.unit
        names = ("corruption", "severity", "level", "unit")
        return dict(zip(names, (self.name, self.severity, self.level, unit), strict=True))


def study_result(found: CountedSlices, axis: int) -> Result:
    """What is stored of a study under a condition: tensors and numbers, about 10 kB.

    Raises
    ------
    ValueError
        If a score is negative or not finite.
    """
    normal = (~found.labels).nonzero().flatten()
    heat, image = (volume.index_select(1 + axis, normal) for volume in (found.heat, found.image))
    hot = (heat > HEATMAP_THRESHOLD) & (image > 0)
    return {
        "scores": found.scores.double(),
        "labels": found.labels,
        "lesion": _histogram(found.heat[found.lesion > 0]),
        "normal": _histogram(found.heat[found.lesion <= 0]),
        # foreground pixels of slices without lesion: above the threshold, and all
        "pixels": [int(hot.sum()), int((image > 0).sum())],
    }


class Tally:
    """Figures of a condition over studies; memory does not grow with their pixels."""

    def __init__(self) -> None:
        self.studies: list[dict[str, Any]] = []
        self.not_applicable = 0  # studies that cannot show the corruption
        self._figures = StudyFigures(bits=PIXEL_BITS)
        self._hot_pixels, self._normal_pixels = 0, 0

    def add(self, case: Mapping[str, Any], result: Result | None) -> None:
        """Count the result of a case; None is a case that cannot show the corruption."""
        if result is None:
            self.not_applicable += 1
            return
        scores, labels, patient = result["scores"], result["labels"], patient_of(dict(case))
        # in float32, as an evaluation has it; a study without slices has no score
        volume = float(volume_score(scores.float())) if scores.numel() else None
        self._figures.add_scores(patient, scores, labels, volume)
        self._figures.pixels.add_counts(_dense(result["lesion"]), _dense(result["normal"]))
        self._hot_pixels += result["pixels"][0]
        self._normal_pixels += result["pixels"][1]
        self.studies.append(
            {
                "case": str(case["case"]),
                "patient": patient,
                "slices": int(labels.numel()),
                "anomalous_slices": int(labels.sum()),
                "volume_score": volume or 0.0,
            }
        )

    def figures(self, calibration: Calibration | None) -> dict[str, Any]:
        """AUROCs, and rates at the thresholds with their counts; None is undefined."""
        limits = (math.inf, math.inf)
        if calibration is not None:
            limits = (calibration.volume_threshold, calibration.slice_threshold)
        hot, found = None if calibration is None else self._hot_pixels, self._figures.compute()
        figures = {
            "studies": len(self.studies),
            "not_applicable": self.not_applicable,
            **{name: found[name] for name in ("volume_auroc", "slice_auroc", "pixel_auroc")},
            **_rates("volume", self._figures.volumes, limits[0]),
            **_rates("slice", self._figures.slices, limits[1]),
            "pixel_false_positive_rate": _share(hot, self._normal_pixels),
            "pixel_false_positives": hot,
            "normal_pixels": self._normal_pixels,
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
    """Values of a case, and size and time of its files: other ones if the case has changed."""
    stamp = [f"{key}={case[key]}" for key in sorted(case)]
    for key in ("image", "label", "organ"):
        if case.get(key) is not None and Path(case[key]).exists():
            stat = Path(case[key]).stat()
            stamp.append(f"{stat.st_size}/{stat.st_mtime_ns}")
    return stamp


def _rates(what: str, scored: Sequence[Scored], threshold: float) -> dict[str, Any]:
    """False positives and detections at a threshold; None where it could not be set."""
    finite = math.isfinite(threshold)
    normal, anomalous = ([row.score for row in scored if row.label == kind] for kind in (0, 1))
    wrong, right = (sum(score > threshold for score in part) for part in (normal, anomalous))
    false_positives, detections = (wrong, right) if finite else (None, None)
    return {
        f"{what}_false_positive_rate": _share(false_positives, len(normal)),
        f"{what}_false_positives": false_positives,
        f"normal_{what}s": len(normal),
        f"{what}_sensitivity": _share(detections, len(anomalous)),
        f"{what}_detections": detections,
        f"anomalous_{what}s": len(anomalous),
    }


def _share(part: int | None, whole: int) -> float | None:
    return None if part is None or whole == 0 else part / whole


def _histogram(scores: Tensor) -> list[Tensor]:
    """Bins of a histogram of scores that are not empty, and their counts."""
    histogram = ScoreHistogram(PIXEL_BITS)
    histogram.update(scores)
    bins = torch.nonzero(histogram.counts).flatten()
    return [bins.int(), histogram.counts[bins]]


def _dense(stored: list[Tensor]) -> Tensor:
    """Histogram (bins,) with its empty bins."""
    counts = torch.zeros(bin_count(PIXEL_BITS), dtype=torch.float64)
    counts[stored[0].long()] = stored[1]
    return counts
