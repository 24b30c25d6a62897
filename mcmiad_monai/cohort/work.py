"""What a worker does with a study: the model looks at it, and its files are kept or not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mcmiad_monai.cohort.identity import check_model
from mcmiad_monai.cohort.ledger import Ledger, Row, Study
from mcmiad_monai.cohort.options import WorkOptions
from mcmiad_monai.cohort.sources import on_disk
from mcmiad_monai.errors import root_message, unwrap
from mcmiad_monai.files.leftovers import remove_leftovers
from mcmiad_monai.files.room import DiskFullError
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.predictor import load
from mcmiad_monai.runtime.interrupts import check, held


class Work:
    """A model that was opened once, and does one study after the other.

    Parameters
    ----------
    bundle : path
        Trained bundle, or a model file.
    out : path
        Folder of the cohort.
    options : WorkOptions

    Raises
    ------
    OtherRunError
        If the other workers of the cohort have another model.
    BundleError, WeightsError, ExportError, ValueError
        As `load`.
    """

    def __init__(self, bundle: str | Path, out: str | Path, options: WorkOptions) -> None:
        self.out, self.options = Path(out), options
        self.predictor = load(bundle, device=options.device, **options.inference)
        content = {
            "made_with": self.predictor.made_with,
            "modality": self.predictor.modality.name,
            "calibration": self.predictor.detector.calibration,
        }
        check_model(self.out, content)

    def __call__(self, study: Study) -> Row:
        """Do a study; its row of the table of results, see `Ledger.end`.

        Whatever is wrong with the study is in the row, too.

        Raises
        ------
        DiskFullError
            If there is no room for its files: that is not the study's fault.
        KeyboardInterrupt
            If a signal came.
        """
        start = time.perf_counter()
        try:
            row = self._done(study)
        except DiskFullError:
            raise
        except Exception as error:
            check()  # a library may have made another error of the signal
            status = "refused" if _is_refusal(unwrap(error)) else "failed"
            row = {"status": status, "error": root_message(error)}
        known = {"seconds": time.perf_counter() - start, "model": self.predictor.made_with["model"]}
        return {**row, **known}

    def _done(self, study: Study) -> Row:
        name = str(study["case"])
        # of a worker that was killed with this study
        remove_leftovers(self.out / name, levels=0)
        with on_disk(dict(study), within=self.out) as case:
            sample = self.predictor.prepare(case)
        prediction = self.predictor.predict(sample)
        kept = self.options.keep == "all" or (
            self.options.keep == "anomalous" and deserves_a_look(prediction)
        )
        if kept:
            with held():
                prediction.save(self.out, pictures=self.options.pictures)
        return {**found(prediction.scores), "folder": name if kept else None}


def do(work: Callable[[Study], Row], ledger: Ledger, study: Study) -> Row:
    """Do a study and record it; a signal, or a full disk, drops it.

    Returns
    -------
    dict
        The line of its end.
    """
    begun = False
    try:
        with held():
            ledger.begin(study)
            begun = True
        row = work(study)
        with held():
            return ledger.end(study, **row)
    except (KeyboardInterrupt, DiskFullError):
        if begun:
            with suppress(DiskFullError):
                ledger.stop(study)
        raise


def deserves_a_look(prediction: Prediction) -> bool:
    """Whether a study is no all-clear: anomalous, without a verdict, or not to be trusted."""
    return prediction.anomalous is not False or bool(prediction.warnings)


def found(scores: Mapping[str, Any]) -> Row:
    """The row of a study that is done, from its scores."""
    verdict = {True: "anomalous", False: "normal", None: "none"}[scores["anomalous"]]
    place = scores["hottest_mm"] or (None, None, None)
    return {
        "status": "done",
        "score": _finite(scores["volume_score"]),
        "threshold": _finite(scores["volume_threshold"]),
        "verdict": verdict,
        "warnings": " ".join(scores["warnings"]),
        "anomaly_ml": _finite(scores["anomaly_ml"]),
        "hottest": _finite(scores["hottest"]),
        **{f"hottest_{axis}_mm": value for axis, value in zip("xyz", place, strict=True)},
        "slices": scores["slices_scored"],
        "slices_above": sum(one["anomalous"] is True for one in scores["slices"]),
        "modality": scores["modality"],
        "input": scores["input"],
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _is_refusal(error: BaseException) -> bool:
    """Whether the study itself is the reason: an error of ours that says what is wrong with it."""
    return isinstance(error, ValueError) and type(error).__module__.startswith("mcmiad_monai.")
