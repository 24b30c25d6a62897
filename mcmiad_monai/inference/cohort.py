"""Many studies, one after the other: all scores in one place, and which studies failed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ignite.engine import Engine, Events
from tqdm import tqdm

from mcmiad_monai.errors import escaped, root_message
from mcmiad_monai.files.room import DiskFullError
from mcmiad_monai.files.writing import only_writer, write_text
from mcmiad_monai.inference.merging import earlier_report, merge_reports, score_table
from mcmiad_monai.inference.outputs import NOTHING_LOOKED_AT, OUT_OF_DISTRIBUTION
from mcmiad_monai.inference.placement import VIEWER_HEATMAP
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.inference.writes import Writes
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.runtime.interrupts import held

logger = logging.getLogger(__name__)

Case = Mapping[str, Any]
#: Adds DICOM objects to a prediction.
AddObjects = Callable[[Prediction], Prediction]
#: Makes, of a case, what adds its objects; raises where there can be none.
ObjectMaker = Callable[[Case], AddObjects]
#: Brings the files of a case to this machine for a while.
AtHand = Callable[[Case], AbstractContextManager[Case]]
Prepared = TypeVar("Prepared")
#: What a warning of a study means, for the screen.
MEANING = {
    NOTHING_LOOKED_AT: "no slice has enough foreground to be looked at, so that there is no score "
    "and no verdict; look at it yourself",
    OUT_OF_DISTRIBUTION: "its median heat is far from that of the held-out healthy studies, as of "
    "another sequence, contrast or quality; trust neither score nor verdict",
}


class CohortIncomplete(SystemExit):
    """Some studies failed; as an exit code it is 1, with the message on standard error."""


class StudyPredictor(Protocol):
    """What runs over a cohort: a `Predictor`."""

    detector: MCMIADDetector

    def prepare(self, case: Case) -> dict[str, Any]:
        """Read a study."""

    def predict(self, sample: Mapping[str, Any]) -> Prediction:
        """Heatmap, mask and scores of a study that was read."""


class CohortReport:
    """Collect the scores of a cohort, and which studies failed.

    Writes ``scores.json`` and ``scores.csv`` (one row a slice) into the output folder; studies of
    earlier runs that these files hold stay in them, see `merge_reports`. Attached to
    an ignite engine it collects what `SaveStudyd` puts under ``scores``, and writes when the
    engine completes or is stopped by an exception.

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

    Attributes
    ----------
    scores : list of dict
        Of the studies that are done.
    failures : dict
        ``case → message`` of those that failed.
    not_done : list of str
        Studies that an interrupt left.
    kept : int
        How many of `scores` are of an earlier run.
    unwritten : str
        Why the report itself could not be written, if so.
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
        self.not_done: list[str] = []
        self.kept = 0
        self.unwritten = ""

    def attach(self, engine: Engine) -> None:
        """Collect after each study of an engine and write at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._finish_and_raise)

    def _collect(self, engine: Any) -> None:
        for item in engine.state.output:
            self.add(item["scores"])

    def _finish(self, engine: Any) -> None:
        self.failures |= getattr(engine, "failures", {})
        self.write()

    def _finish_and_raise(self, engine: Engine, error: BaseException) -> None:
        self._finish(engine)
        raise error

    def add(self, scores: dict[str, Any]) -> None:
        """Keep the scores of a study, and log its warnings."""
        self.scores.append(scores)
        for warning in scores.get("warnings", ()):
            logger.warning("study %s: %s (%s)", scores["case"], MEANING[warning], warning)
        if copy := scores.get(VIEWER_HEATMAP):
            logger.info("study %s has a sheared grid; %s is for viewers", scores["case"], copy)

    def keep(self, scores: dict[str, Any]) -> None:
        """Count the scores of a study whose result is there from an earlier run."""
        self.scores.append(scores)
        self.kept += 1

    def warned(self, warning: str) -> int:
        """How many studies have a warning."""
        return sum(warning in study.get("warnings", ()) for study in self.scores)

    def fail(self, case: str, error: BaseException) -> None:
        """Keep and log why a study failed."""
        logger.debug("study %s", case, exc_info=error)
        self.failures[case] = root_message(error)
        logger.error("study %s failed: %s", case, self.failures[case])

    def write(self) -> None:
        """Wait for the studies' files, and write the report.

        Where there is no room for it, the studies' own files are there nevertheless.
        """
        if self.writes is not None:
            self.writes.finish()
            self.failures.update(self.writes.failures)
            self.scores = [s for s in self.scores if s["case"] not in self.writes.failures]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir / "scores.json"
        try:
            with only_writer(self.output_dir):
                report = merge_reports(earlier_report(path), self.content())
                write_text(path, json.dumps(report, indent=1, default=str))
                write_text(self.output_dir / "scores.csv", score_table(report))
        except DiskFullError as error:
            self.unwritten = str(error)
            logger.error("%s", escaped(self.unwritten))
        logger.info("%s", escaped(self.summary()))

    def content(self) -> dict[str, Any]:
        """What ``scores.json`` holds of this run."""
        return {
            "studies": len(self.scores) + len(self.failures),
            "failed": self.failures,
            "not_done": self.not_done,
            **{warning: self.warned(warning) for warning in MEANING},
            "heatmap_unit": "1.0 is the calibrated pixel threshold",
            "calibration": self.calibration,
            "provenance": self.provenance,
            "inferred_with": produced_with(),
            "scores": self.scores,
        }

    def summary(self) -> str:
        """How many studies are done, failed and have warnings, and where the results are."""
        counts = [f"{len(self.scores) - self.kept} studies done"]
        counts += [f"{self.kept} kept from before"] if self.kept else []
        counts += [f"{len(self.failures)} failed"]
        counts += [f"{len(self.not_done)} not done"] if self.not_done else []
        counts += [f"{n} with {warning}" for warning in MEANING if (n := self.warned(warning))]
        return f"{', '.join(counts)}: {self.output_dir}"

    def finish(self) -> None:
        """Tell the caller if anything failed.

        Raises
        ------
        CohortIncomplete
            If a study failed, everything else having been written; or if the report itself could
            not be written.
        """
        if self.failures:
            total = len(self.scores) + len(self.failures)
            reasons = "".join(f"\n  {name}: {error}" for name, error in self.failures.items())
            raise CohortIncomplete(f"{len(self.failures)} of {total} studies failed:{reasons}")
        if self.unwritten:
            raise CohortIncomplete(self.unwritten)


def infer_cohort(
    predictor: StudyPredictor,
    cases: Sequence[Case],
    output_dir: str | Path,
    *,
    pictures: bool = True,
    preview: bool = False,
    nifti: bool = True,
    progress: bool = True,
    kept: Mapping[str, dict[str, Any]] | None = None,
    objects: ObjectMaker | None = None,
    at_hand: AtHand = nullcontext,
) -> CohortReport:
    """Heatmaps, masks and scores of many studies; one bad study never stops the others.

    The next study is read, and the last one written, while one is computed. Memory is that of
    these three, however many there are.

    Parameters
    ----------
    predictor : Predictor
    cases : sequence of mapping
        As `find_studies` gives them.
    output_dir : path
        Each study gets a folder in it.
    pictures : bool
        A study that was a picture comes back as pictures.
    preview : bool
        Also write ``<case>_preview.png``, the hottest slices of each study.
    nifti : bool
        Write heatmap and mask of each study.
    progress : bool
        Show a progress bar.
    kept : mapping, optional
        Name of a case → scores of its earlier result, which stays; see `finished_studies`.
    objects : callable, optional
        Of a case makes what adds DICOM objects to its prediction, before anything is computed: a
        case of which it cannot has failed. See `mcmiad_monai.dicom.objects.Objects`.
    at_hand : callable
        Makes, of a case, a context in which its files are on this machine, and which gives the case
        as it is there.

    Returns
    -------
    CohortReport
        Written; its `failures` are the studies that failed.

    Raises
    ------
    KeyboardInterrupt
        If a signal ended it: the study that was computed is dropped, and the report written, whose
        summary is the exception's argument.
    """
    writes = Writes()
    report = CohortReport(
        output_dir,
        provenance=predictor.detector.provenance,
        calibration=predictor.detector.calibration,
        writes=writes,
    )
    for scores in (kept or {}).values():
        report.keep(scores)
    todo = [case for case in cases if case["case"] not in (kept or {})]
    bar = tqdm(total=len(todo), desc="studies", unit=" studies", disable=not progress)
    try:
        for name, sample in read_ahead(partial(_prepare, predictor, objects, at_hand), todo):
            try:
                prepared, add = sample.result()
                prediction = add(predictor.predict(prepared))
                work = partial(_save, prediction, Path(output_dir), pictures, preview, nifti)
                with held():
                    writes.submit(name, work)
                    report.add(prediction.scores)
            except Exception as error:
                report.fail(name, error)
            bar.update(1)
    except KeyboardInterrupt as stop:
        reached = len(report.scores) - report.kept + len(report.failures)
        report.not_done = [str(case["case"]) for case in todo[reached:]]
        with held():
            report.write()
        stop.args = (report.summary(),)
        raise
    finally:
        bar.close()
    with held():
        report.write()
    return report


def read_ahead(
    prepare: Callable[[Case], Prepared], cases: Sequence[Case]
) -> Iterator[tuple[str, Future[Prepared]]]:
    """Name and prepared sample of each case, of which the next is read in a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="reads") as reader:
        following: Future[Prepared] | None = None
        for k, case in enumerate(cases):
            current = following or reader.submit(prepare, case)
            more = k + 1 < len(cases)
            following = reader.submit(prepare, cases[k + 1]) if more else None
            yield str(case["case"]), current


def _prepare(
    predictor: StudyPredictor, objects: ObjectMaker | None, at_hand: AtHand, case: Case
) -> tuple[dict[str, Any], AddObjects]:
    """A study that was read, and what is added to its prediction."""
    with at_hand(case) as here:
        add = _as_it_is if objects is None else objects(here)
        return predictor.prepare(here), add


def _as_it_is(prediction: Prediction) -> Prediction:
    return prediction


def _save(prediction: Prediction, out: Path, pictures: bool, preview: bool, nifti: bool) -> None:
    folder = prediction.save(out, pictures=pictures, nifti=nifti)
    if preview:
        prediction.preview(folder / f"{prediction.name}_preview.png")


def to_plain(value: Any) -> Any:
    """Tensors, arrays and NaN as JSON has them; an undefined figure becomes null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
