"""What is measured on volumes with lesion masks, and the report of it.

A study's output holds ``image`` (normalised), ``label`` (lesion mask) and ``pred`` (heatmap), all
(1, X, Y, Z) on the canonical grid. Slices outside the chosen range are no part of any figure.
Within it, slices without foreground are never looked at: normal ones are left out of every figure,
because they would only flatter it; a lesion in one counts as missed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from torch import Tensor

from mcmiad_monai.files import write_text
from mcmiad_monai.inference.cohort import CohortIncomplete, to_plain
from mcmiad_monai.inference.inferer import SLICE_SCORES
from mcmiad_monai.metrics import (
    AUPRO,
    FROC,
    PatientPixels,
    PixelAUROC,
    PixelMetrics,
    SliceAP,
    SliceAUROC,
    SliceF1Max,
    bootstrap_auroc,
)
from mcmiad_monai.networks.score import volume_score
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.transforms import slices_in_range

Output = list[dict[str, Any]]
Pairs = Callable[[Output], tuple[Tensor, Tensor]]


def slice_labels(mask: Tensor, axis: int) -> Tensor:
    """Whether each slice of a mask (1, X, Y, Z) holds a lesion, (n,) bool."""
    return (mask > 0).movedim(1 + axis, 0).flatten(1).any(1)


@dataclass(frozen=True)
class Slices:
    """Which slices are measured.

    Attributes
    ----------
    axis : int
        Slice axis of the canonical volumes.
    slice_range : (float, float)
        Share of the slices of a study, as the inferer was told.
    """

    axis: int
    slice_range: tuple[float, float] = (0.0, 1.0)


def study_slices(item: Mapping[str, Any], which: Slices) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and indices of the slices of a study that count, (m,) each."""
    scores = torch.as_tensor(item["pred"].meta[SLICE_SCORES]).reshape(-1)
    labels = slice_labels(torch.as_tensor(item["label"]), which.axis)
    known = item["pred"].meta.get("anomalous")
    if known is not None and bool(torch.as_tensor(known)):
        labels = labels | (scores.shape[0] == 1)  # an image whose folder says so, without a mask
    inside = torch.zeros_like(labels)
    inside[slices_in_range(len(labels), which.slice_range)] = True
    counted = (torch.isfinite(scores) | labels) & inside
    return torch.nan_to_num(scores, nan=0.0)[counted], labels[counted], counted.nonzero().flatten()


def slice_pairs(which: Slices) -> Pairs:
    """Slice scores and labels of an output."""

    def pairs(output: Output) -> tuple[Tensor, Tensor]:
        parts = [study_slices(item, which)[:2] for item in output]
        return concatenate([s for s, _ in parts]), concatenate([y for _, y in parts])

    return pairs


def volume_pairs(which: Slices) -> Pairs:
    """Volume scores and labels of an output."""

    def pairs(output: Output) -> tuple[Tensor, Tensor]:
        parts = [study_slices(item, which)[:2] for item in output]
        parts = [(s, y) for s, y in parts if s.numel()]
        scores = [volume_score(s).reshape(1) for s, _ in parts]
        return concatenate(scores), concatenate([y.any().reshape(1) for _, y in parts])

    return pairs


def pixel_pairs(which: Slices, *, foreground: bool = False) -> Pairs:
    """Heatmap and mask voxels of the slices that count; all of them, or the foreground's."""

    def pairs(output: Output) -> tuple[Tensor, Tensor]:
        heat, lesion = [], []
        for item in output:
            chosen = study_slices(item, which)[2]
            parts = [
                torch.as_tensor(item[key]).index_select(1 + which.axis, chosen)
                for key in ("pred", "label", "image")
            ]
            keep = (parts[2] > 0) | (parts[1] > 0) if foreground else torch.ones_like(parts[2]) > 0
            heat.append(parts[0][keep])
            lesion.append(parts[1][keep])
        return concatenate(heat), concatenate(lesion)

    return pairs


def whole_pair(which: Slices) -> Pairs:
    """Heatmap and mask (1, 1, …) of the one study of an output, or none of it (0, 1)."""

    def pair(output: Output) -> tuple[Tensor, Tensor]:
        if not output:
            return torch.zeros(0, 1), torch.zeros(0, 1)
        (item,) = output  # studies differ in shape: a batch holds one
        chosen = study_slices(item, which)[2]
        heat, mask = (
            torch.as_tensor(item[key]).index_select(1 + which.axis, chosen)[None]
            for key in ("pred", "label")
        )
        return heat, mask

    return pair


def concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenate flat tensors; nothing gives an empty one."""
    return torch.cat([p.reshape(-1) for p in parts]) if parts else torch.zeros(0)


def study_metrics(axis: int, slice_range: Sequence[float] = (0.0, 1.0)) -> dict[str, Metric]:
    """Metrics of whole studies, for a :class:`~mcmiad_monai.inference.evaluator.StudyEvaluator`.

    Parameters
    ----------
    axis : int
        Slice axis of the canonical volumes.
    slice_range : (float, float)
        Share of the slices that the inferer looks at.
    """
    which = Slices(axis, (float(slice_range[0]), float(slice_range[1])))
    slices, volumes, pixels = slice_pairs(which), volume_pairs(which), pixel_pairs(which)
    return {
        "slice_auroc": SliceAUROC(slices),
        "slice_ap": SliceAP(slices),
        "slice_f1_max": SliceF1Max(slices),
        "volume_auroc": SliceAUROC(volumes),
        "volume_ap": SliceAP(volumes),
        "volume_f1_max": SliceF1Max(volumes),
        "pixels": PixelMetrics(pixels),
        "pixel_auroc_foreground": PixelAUROC(pixel_pairs(which, foreground=True)),
        "aupro": AUPRO(whole_pair(which)),
        "lesions": FROC(whole_pair(which)),
    }


class Intervals:
    """Scores of every study, for confidence intervals over patients."""

    def __init__(self) -> None:
        self._slices: list[tuple[str, float, bool]] = []
        self._volumes: list[tuple[str, float, bool]] = []
        self._pixels = PatientPixels()

    def add(
        self, patient: str, scores: Tensor, labels: Tensor, pixels: tuple[Tensor, Tensor]
    ) -> None:
        """Take a study: slice scores and labels (n,), and its heatmap and mask."""
        if not scores.numel():
            return
        pairs = zip(scores.tolist(), labels.tolist(), strict=True)
        self._slices += [(patient, score, label) for score, label in pairs]
        self._volumes.append((patient, float(volume_score(scores)), bool(labels.any())))
        self._pixels.update(patient, *pixels)

    def to_dict(self) -> dict[str, Any]:
        """95 % intervals by bootstrap over patients, fit for JSON."""
        if not self._volumes:
            return {}
        intervals = {"pixel_auroc": self._pixels.auroc_interval()}
        for name, rows in (("slice_auroc", self._slices), ("volume_auroc", self._volumes)):
            patients, scores, labels = zip(*rows, strict=True)
            intervals[name] = bootstrap_auroc(np.array(scores), np.array(labels), patients)
        return {name: interval.to_dict() for name, interval in intervals.items()}


class EvaluationReport:
    """Write ``metrics.json`` and ``studies.csv`` when an evaluation completes.

    Parameters
    ----------
    output_dir : path
        Where to.
    axis : int
        Slice axis of the canonical volumes.
    slice_range : (float, float)
        Share of the slices that the inferer looks at.
    provenance : mapping, optional
        What produced the figures.
    calibration : mapping, optional
        Thresholds of the model: goes into ``metrics.json``.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        axis: int,
        slice_range: Sequence[float] = (0.0, 1.0),
        provenance: Mapping[str, Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.calibration = dict(calibration or {})
        self.which = Slices(axis, (float(slice_range[0]), float(slice_range[1])))
        self.provenance = dict(provenance or {})
        self.rows: list[dict[str, Any]] = []
        self.intervals = Intervals()
        self.report: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Collect after each study and write after the metrics are computed."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Any) -> None:
        for item in engine.state.output:
            scores, labels, _ = study_slices(item, self.which)
            inside = slices_in_range(
                item["pred"].shape[1 + self.which.axis], self.which.slice_range
            )
            heat, mask = (
                torch.as_tensor(item[key]).movedim(1 + self.which.axis, 0)[inside]
                for key in ("pred", "label")
            )
            mask = mask > 0
            meta = item["pred"].meta
            self.intervals.add(meta.get("patient", meta["case"]), scores, labels, (heat, mask))
            self.rows.append(
                {
                    "case": item["pred"].meta["case"],
                    "slices": int(labels.numel()),
                    "anomalous_slices": int(labels.sum()),
                    "volume_score": float(volume_score(scores)) if scores.numel() else 0.0,
                    "lesion_voxels": int(mask.sum()),
                    "dice_at_threshold": dice(heat > 1, mask),
                }
            )

    def _write(self, engine: Engine) -> None:
        self.report = {
            # ignite has the figures of a metric with several both together and one by one
            "metrics": {
                k: to_plain(v)
                for k, v in engine.state.metrics.items()
                if not isinstance(v, Mapping)
            },
            "intervals": self.intervals.to_dict(),
            "undefined": "null: only one class was present",
            "slice_range": list(self.which.slice_range),
            "studies": len(self.rows),
            "slices": sum(r["slices"] for r in self.rows),
            "anomalous_slices": sum(r["anomalous_slices"] for r in self.rows),
            "failed": dict(getattr(engine, "failures", {})),
            "calibration": self.calibration,
            "provenance": self.provenance,
            "evaluated_with": produced_with(),
        }
        write_text(self.output_dir / "metrics.json", json.dumps(self.report, indent=1, default=str))
        stream = io.StringIO()
        if self.rows:
            table = csv.DictWriter(stream, fieldnames=list(self.rows[0]))
            table.writeheader()
            table.writerows(self.rows)
        write_text(self.output_dir / "studies.csv", stream.getvalue())

    def finish(self) -> None:
        """Tell the caller if a study failed.

        Raises
        ------
        CohortIncomplete
            If one did; the figures of the others have been written.
        """
        failed = self.report.get("failed", {})
        if failed:
            told = "".join(f"\n  {name}: {error}" for name, error in failed.items())
            raise CohortIncomplete(
                f"{len(self.rows)} studies evaluated, {len(failed)} failed:{told}"
            )


def dice(prediction: Tensor, truth: Tensor) -> float | None:
    """Dice of two boolean volumes; None where the truth is empty."""
    if not truth.any():
        return None
    overlap = (prediction & truth).sum().item()
    return 2 * overlap / (prediction.sum().item() + truth.sum().item())
