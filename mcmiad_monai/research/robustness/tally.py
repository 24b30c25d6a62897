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
from mcmiad_monai.data.cache_key import file_stamp
from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.files.writing import save_torch
from mcmiad_monai.inference.cohort import to_plain
from mcmiad_monai.inference.evaluation import CountedSlices
from mcmiad_monai.inference.settings import HEATMAP_THRESHOLD
from mcmiad_monai.metrics.histogram import ScoreHistogram, bin_count
from mcmiad_monai.metrics.studies import Scored, StudyFigures
from mcmiad_monai.research.robustness.corruptions import Corruption

logger = logging.getLogger(__name__)

#: Name of the condition without any corruption.
CLEAN = "clean"
#: Resolution of the stored pixel histograms: bins of 0.4 %, some 10 kB a study and condition.
PIXEL_BITS = 8
Result = dict[str, Any]


@dataclass(frozen=True)
class Condition:
    """A corruption at a severity from 1 to 5; without one, the study as it is, at severity 0."""

    corruption: Corruption | None = None
    severity: int = 0

    def row(self) -> dict[str, Any]:
        """Name, severity, level and unit, for a row of the report."""
        found = self.corruption
        if found is None:
            return {"corruption": CLEAN, "severity": 0, "level": 0.0, "unit": None}
        level = found.levels[self.severity - 1]
        names = {"corruption": found.name, "severity": self.severity}
        return {**names, "level": level, "unit": found.unit}

    @property
    def key(self) -> str:
        """Key of its results; another one if the level of a severity is ever redefined."""
        return "{corruption}/{level:g}".format(**self.row())


def study_result(found: CountedSlices, axis: int) -> Result:
    """What is stored of a study under a condition: tensors and numbers, about 10 kB."""
    normal = (~found.labels).nonzero().flatten()
    heat, image = (volume.index_select(1 + axis, normal) for volume in (found.heat, found.image))
    hot = (heat > HEATMAP_THRESHOLD) & (image > 0)
    return {
        "scores": found.scores.double(),
        "labels": found.labels,
        "volume": found.volume_score,
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
        scores, labels, patient = result["scores"], result["labels"], patient_of(case)
        self._figures.add_scores(patient, scores, labels, result["volume"])
        self._figures.pixels.add_counts(_dense(result["lesion"]), _dense(result["normal"]))
        self._hot_pixels += result["pixels"][0]
        self._normal_pixels += result["pixels"][1]
        self.studies.append(
            {
                "case": str(case["case"]),
                "patient": patient,
                "slices": int(labels.numel()),
                "anomalous_slices": int(labels.sum()),
                "volume_score": result["volume"],
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

    Results of other options, which must be fit for JSON, are not used.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.folder, self.options = folder, dict(options)

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
        """Of the options, the case, and size and time of its files."""
        values = {key: str(value) for key, value in case.items()}
        stamps = [file_stamp(case.get(key)) for key in ("image", "label", "organ")]
        text = json.dumps([self.options, values, stamps], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _rates(what: str, scored: Sequence[Scored], threshold: float) -> dict[str, Any]:
    """False positives and detections at a threshold; None where it could not be set."""
    finite = math.isfinite(threshold)
    normal, anomalous = ([row.score for row in scored if row.label == kind] for kind in (0, 1))
    wrong, right = (
        sum(score > threshold for score in part) if finite else None for part in (normal, anomalous)
    )
    return {
        f"{what}_false_positive_rate": _share(wrong, len(normal)),
        f"{what}_false_positives": wrong,
        f"normal_{what}s": len(normal),
        f"{what}_sensitivity": _share(right, len(anomalous)),
        f"{what}_detections": right,
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
