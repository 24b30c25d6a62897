"""The report of a cohort: all scores in one place, and which studies failed."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from mcmiad_monai.files import write_text
from mcmiad_monai.inference.writes import Writes
from mcmiad_monai.provenance import produced_with

logger = logging.getLogger(__name__)


class CohortIncomplete(SystemExit):
    """Some studies failed; as an exit code it is 1, with the message on standard error."""


class CohortReport:
    """Collect the scores of a cohort and say which studies failed.

    Writes ``scores.json`` and ``scores.csv`` (one row a slice) into the output folder when the
    evaluator completes, also if it is stopped by an exception.

    Parameters
    ----------
    output_dir : path
        The cohort's folder.
    provenance : mapping, optional
        What produced the scores: goes into ``scores.json``.
    calibration : mapping, optional
        Thresholds of the model: goes into ``scores.json``.
    writes : Writes, optional
        Where the studies' files are written; is waited for, and a study that it could not write
        has failed.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        provenance: Mapping[str, Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
        writes: Writes | None = None,
    ) -> None:
        self.output_dir, self.writes = Path(output_dir), writes
        self.provenance, self.calibration = dict(provenance or {}), dict(calibration or {})
        self.scores: list[dict[str, Any]] = []
        self.failures: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Collect after each study and write at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._write_and_raise)

    def _collect(self, engine: Any) -> None:
        self.scores += [item["scores"] for item in engine.state.output]

    def _write_and_raise(self, engine: Engine, error: BaseException) -> None:
        self._write(engine)
        raise error

    def _write(self, engine: Engine) -> None:
        self.failures = dict(getattr(engine, "failures", {}))
        if self.writes is not None:
            self.writes.finish()
            self.failures.update(self.writes.failures)
            self.scores = [s for s in self.scores if s["case"] not in self.writes.failures]
        report = {
            "studies": len(self.scores) + len(self.failures),
            "failed": self.failures,
            "heatmap_unit": "1.0 is the calibrated pixel threshold",
            "calibration": self.calibration,
            "provenance": self.provenance,
            "inferred_with": produced_with(),
            "scores": self.scores,
        }
        write_text(self.output_dir / "scores.json", json.dumps(report, indent=1, default=str))
        write_text(self.output_dir / "scores.csv", self._table())
        logger.info("%s", self.summary())

    def _table(self) -> str:
        """One row a slice; a failed study has one row with its error."""
        stream = io.StringIO()
        rows = csv.writer(stream)
        rows.writerow(["case", "volume_score", "slice", "slice_score", "anomalous", "error"])
        for study in self.scores:
            for entry in study["slices"]:
                volume, score = f"{study['volume_score']:.6g}", f"{entry['score']:.6g}"
                rows.writerow(
                    [study["case"], volume, entry["index"], score, entry["anomalous"], ""]
                )
        for name, error in self.failures.items():
            rows.writerow([name, "", "", "", "", error])
        return stream.getvalue()

    def summary(self) -> str:
        """One line, with the failures after it."""
        lines = [f"{len(self.scores)} studies done, {len(self.failures)} failed: {self.output_dir}"]
        lines += [f"  {name}: {error}" for name, error in self.failures.items()]
        return "\n".join(lines)

    def finish(self) -> None:
        """Tell the caller if anything failed.

        Raises
        ------
        CohortIncomplete
            If a study failed; everything else has been written.
        """
        if self.failures:
            raise CohortIncomplete(self.summary())


def to_plain(value: Any) -> Any:
    """Tensors, arrays and NaN as JSON has them; an undefined figure becomes null."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
