"""Figures on studies with lesion masks, and the report of them.

A study's sample holds ``image`` (normalised), ``label`` (lesion mask) and ``pred`` (heatmap), each
(1, X, Y, Z) on the canonical grid. Slices outside the chosen range are no part of any figure.
Within it, slices without foreground are never looked at: normal ones are left out of every figure,
because they would only flatter it; a lesion in one counts as missed. So does a lesion outside the
field of view, where the heat is 0.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from mcmiad_monai.errors import root_message
from mcmiad_monai.files.writing import write_csv, write_text
from mcmiad_monai.inference.cohort import CohortIncomplete, read_ahead, to_plain
from mcmiad_monai.inference.inferer import SLICE_SCORES
from mcmiad_monai.inference.outputs import NOTHING_LOOKED_AT
from mcmiad_monai.metrics.studies import StudyFigures
from mcmiad_monai.networks.score import volume_score
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.runtime.interrupts import held
from mcmiad_monai.transforms import on_whole_grid, slices_in_range
from mcmiad_monai.transforms.metadata import plain

logger = logging.getLogger(__name__)


class CountedSlices(NamedTuple):
    """The slices of a study that count.

    Attributes
    ----------
    scores : Tensor (n,)
        0 in slices that were not looked at.
    labels : Tensor (n,) of bool
        Whether a slice has a lesion.
    heat, lesion, image : Tensor (1, X, Y, Z)
        Heatmap, mask and normalised intensities of these slices alone.
    looked_at : bool
        Whether the model looked at any of them.
    """

    scores: Tensor
    labels: Tensor
    heat: Tensor
    lesion: Tensor
    image: Tensor
    looked_at: bool

    @property
    def volume_score(self) -> float | None:
        """Score of the study in figures; None if no slice counts.

        A study with a lesion that was skipped as a whole counts as missed.
        """
        return float(volume_score(self.scores)) if self.scores.numel() else None


def counted_slices(
    sample: Mapping[str, Any], axis: int, slice_range: Sequence[float] = (0.0, 1.0)
) -> CountedSlices:
    """Choose the slices of a study that count.

    Parameters
    ----------
    sample : mapping
        ``image``, ``label`` and ``pred``; ``pred.meta`` has the slice scores, and may have
        ``anomalous``, which decides for a single image without a mask.
    axis : int
        Slice axis of the canonical volume.
    slice_range : (float, float)
        Share of the slices that the inferer looks at.
    """
    meta = sample["pred"].meta
    # on the whole grid: a lesion outside the field of view was missed
    whole = [on_whole_grid(sample[key]) for key in ("pred", "label", "image")]
    volumes = [torch.as_tensor(plain(volume))[:1].cpu() for volume in whole]
    scores = torch.as_tensor(meta[SLICE_SCORES]).reshape(-1)
    labels = (volumes[1] > 0).movedim(1 + axis, 0).flatten(1).any(1)
    known = meta.get("anomalous")
    if known is not None and bool(torch.as_tensor(known)):
        labels = labels | (scores.shape[0] == 1)
    inside = torch.zeros_like(labels)
    inside[slices_in_range(len(labels), (slice_range[0], slice_range[1]))] = True
    chosen = ((torch.isfinite(scores) | labels) & inside).nonzero().flatten()
    parts = (volume.index_select(1 + axis, chosen) for volume in volumes)
    heat, lesion, image = parts
    return CountedSlices(
        torch.nan_to_num(scores, nan=0.0)[chosen],
        labels[chosen],
        heat,
        lesion,
        image,
        looked_at=bool(torch.isfinite(scores[chosen]).any()),
    )


class EvaluationReport:
    """Figures of studies, into ``metrics.json`` and ``studies.csv``.

    Attach it to an evaluator, or call :meth:`add` for each study and then :meth:`write`.

    Parameters
    ----------
    output_dir : path
        Folder to write into.
    axis : int
        Slice axis of the canonical volumes.
    slice_range : (float, float)
        Share of the slices that the inferer looks at.
    provenance : mapping, optional
        What produced the heatmaps.
    calibration : mapping, optional
        Thresholds of the model.

    Attributes
    ----------
    report : dict
        Content of ``metrics.json`` once it is written.
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
        self.output_dir, self.axis = Path(output_dir), axis
        self.slice_range = (float(slice_range[0]), float(slice_range[1]))
        self.provenance, self.calibration = dict(provenance or {}), dict(calibration or {})
        self.figures = StudyFigures()
        self.rows: list[dict[str, Any]] = []
        self.report: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Add each study of an evaluator, and write at the end; the figures are its metrics."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_all)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def add(self, sample: Mapping[str, Any]) -> None:
        """Add a study; ``pred.meta`` has its ``case`` and may have its ``patient``."""
        meta, found = sample["pred"].meta, counted_slices(sample, self.axis, self.slice_range)
        self.figures.update(
            str(meta.get("patient", meta["case"])),
            found.heat,
            found.lesion,
            found.image,
            scores=found.scores,
            labels=found.labels,
            volume_score=found.volume_score,
        )
        if not found.looked_at:
            logger.warning("study %s has no score: no slice was looked at", meta["case"])
        self.rows.append(
            {
                "case": meta["case"],
                "slices": found.labels.numel(),
                "anomalous_slices": int(found.labels.sum()),
                "volume_score": found.volume_score if found.looked_at else None,
                "lesion_voxels": int((found.lesion > 0).sum()),
                "dice_at_threshold": dice(found.heat > 1, found.lesion > 0),
            }
        )

    def write(self, failures: Mapping[str, str]) -> None:
        """Write both files; ``failures`` are messages of studies without figures."""
        intervals = self.figures.intervals()
        self.report = {
            "metrics": {k: to_plain(v) for k, v in self.figures.compute().items()},
            "intervals": {name: interval.to_dict() for name, interval in intervals.items()},
            "undefined": "null: only one class was present",
            "slice_range": list(self.slice_range),
            "studies": len(self.rows),
            NOTHING_LOOKED_AT: sum(r["volume_score"] is None for r in self.rows),
            "slices": sum(r["slices"] for r in self.rows),
            "anomalous_slices": sum(r["anomalous_slices"] for r in self.rows),
            "failed": dict(failures),
            "calibration": self.calibration,
            "provenance": self.provenance,
            "evaluated_with": produced_with(),
        }
        write_text(self.output_dir / "metrics.json", json.dumps(self.report, indent=1, default=str))
        write_csv(self.output_dir / "studies.csv", self.rows)

    def finish(self) -> None:
        """Raise if a study failed.

        Raises
        ------
        CohortIncomplete
            If one did; the figures of the others have been written.
        """
        failed = self.report.get("failed", {})
        if failed:
            names = "".join(f"\n  {name}: {error}" for name, error in failed.items())
            raise CohortIncomplete(
                f"{len(self.rows)} studies evaluated, {len(failed)} failed:{names}"
            )

    def _add_all(self, engine: Any) -> None:
        for sample in engine.state.output:  # empty where a study failed
            self.add(sample)

    def _write(self, engine: Any) -> None:
        self.write(getattr(engine, "failures", {}))
        engine.state.metrics.update(self.report["metrics"])


def evaluate(
    predictor: Any,
    cases: Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    *,
    progress: bool = True,
) -> EvaluationReport:
    """Measure a predictor on studies with masks; writes what ``evaluate.yaml`` of a bundle writes.

    Parameters
    ----------
    predictor : Predictor
    cases : sequence of dict
        With ``case``, ``image`` and ``label``, as ``find_studies`` returns them.
    output_dir : path
        Folder of ``metrics.json`` and ``studies.csv``.

    Returns
    -------
    EvaluationReport
        Its ``report`` is the content of ``metrics.json``; its :meth:`~EvaluationReport.finish`
        raises if a study failed.

    Raises
    ------
    KeyboardInterrupt
        If a signal ended it: nothing is written, as figures are of all studies together.
    """
    detector = predictor.detector
    report = EvaluationReport(
        output_dir,
        axis=predictor.slice_axis,
        slice_range=predictor.slice_range,
        provenance=detector.provenance,
        calibration=detector.calibration,
    )
    failures: dict[str, str] = {}
    ahead = read_ahead(partial(predictor.prepare, label=True), cases)
    try:
        for name, reading in tqdm(ahead, "studies", total=len(cases), disable=not progress):
            try:
                sample = reading.result()
                found = {**sample, "pred": predictor.heat(sample["image"])}
                with held():
                    report.add(found)
            except Exception as error:
                failures[name] = root_message(error)
                logger.error("study %s failed: %s", name, failures[name])
                logger.debug("study %s", name, exc_info=error)
    except KeyboardInterrupt as stop:
        stop.args = (f"{len(report.rows)} of {len(cases)} studies evaluated, nothing written",)
        raise
    with held():
        report.write(failures)
    return report


def dice(prediction: Tensor, truth: Tensor) -> float | None:
    """Dice of two boolean volumes; None where the truth is empty."""
    if not truth.any():
        return None
    overlap = (prediction & truth).sum().item()
    return 2 * overlap / (prediction.sum().item() + truth.sum().item())
