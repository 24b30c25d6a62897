"""How far figures fall, and false alarms rise, when images get worse.

Every study is read once, and all conditions run on it in memory: reading, unpacking and orienting a
study costs as much as its inference on a GPU, and there are some fifty conditions. What a study
gives is stored when it is done (see `tally`): an interrupted run goes on where it was, and studies
or conditions that are asked for later are added to those there are.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from tqdm import tqdm

from mcmiad_monai import __version__
from mcmiad_monai.data.studies import StudyDataset
from mcmiad_monai.errors import root_message
from mcmiad_monai.inference.cohort import CohortIncomplete
from mcmiad_monai.inference.evaluation import counted_slices
from mcmiad_monai.modality import Modality
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.robustness.corruptions import (
    SEVERITIES,
    StudyCorruptor,
    corruptions_for,
    get_corruption,
)
from mcmiad_monai.research.robustness.stress_report import write_report
from mcmiad_monai.research.robustness.subject import (
    Subject,
    cases_of,
    open_subject,
    split_preprocessing,
)
from mcmiad_monai.research.robustness.tally import Condition, Result, Store, Tally, study_result

logger = logging.getLogger(__name__)


def run_stress(
    model: str | Path,
    cases: Sequence[dict[str, Any]],
    *,
    out: str | Path,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    modality: str | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a packaged model on studies under graded corruptions.

    Writes ``stress.json``, ``stress.csv``, ``stress.md``, ``stress.png`` and, with the scores of
    the studies as they are, ``studies.csv``. The figures of the condition ``clean`` are those of
    an evaluation of the bundle. A study that cannot be read or inferred is reported and left out;
    it is tried again when the test is run again.

    Parameters
    ----------
    model : path
        Usually ``models/model.pt`` of a trained bundle. Modality and share of the slices to look at
        are those of its training; an export beside it is used as inference uses it.
    cases : sequence of dict
        As :func:`mcmiad_monai.data.cases.find.find_cases` gives them.
    out : path
        Folder of the report; its folder ``partial`` holds the results of the studies.
    corruptions : sequence of str, optional
        Names; all of the modality by default.
    severities : sequence of int
        From 1 to 5; the studies as they are, severity 0, are always measured.
    seed : int
        Of the corruptions.
    modality : str, optional
        Of the studies, for a unified model, which is measured in one modality at a time. Cases
        that name another under the key ``modality`` are left out. Without it, the only one named.
    device : str or torch.device
    batch_size : int, optional
        Slices in one call of the network; chosen by the device if not given.
    progress : bool
        Show a progress bar over the studies and conditions.

    Returns
    -------
    dict
        What ``stress.json`` holds.

    Raises
    ------
    ValueError
        If there are no cases, two have one name, a corruption or severity is not known, the
        package does not say for which modality it was trained, or does not fit `modality`.
    WeightsError
        If the model is no package.
    """
    subject = open_subject(model, cases, modality=modality, device=device)
    conditions = choose_conditions(subject.kind, corruptions, severities)
    chosen = cases_of(cases, subject.kind)
    options: dict[str, Any] = {
        "model_sha256": hashlib.sha256(Path(model).read_bytes()).hexdigest(),
        "modality": subject.kind.name,
        "slice_range": list(subject.slice_range),
        "engine": subject.engine,
        "seed": seed,
    }
    store = Store(Path(out) / "partial", {**options, "version": __version__})
    bench = StressBench(
        subject, conditions=conditions, store=store, batch_size=batch_size, seed=seed
    )
    bench.run(chosen, progress=progress)
    report = {
        **options,
        "rows": [bench.row(condition) for condition in conditions],
        "failed": bench.unread,
        "calibration": subject.calibration.to_dict() if subject.calibration else {},
        "provenance": subject.network.provenance,
        "measured_with": produced_with(),
    }
    write_report(report, bench.tallies[conditions[0]].studies, Path(out))
    return report


def choose_conditions(
    kind: Modality, corruptions: Sequence[str] | None, severities: Sequence[int]
) -> list[Condition]:
    """The clean condition, and every corruption at every severity, in order.

    Raises
    ------
    ValueError
        If a corruption or severity is not known or there is none.
    """
    if corruptions is None:
        chosen = list(corruptions_for(kind))
    else:
        chosen = [get_corruption(name, kind) for name in dict.fromkeys(corruptions)]
    grades = sorted(set(severities) - {0})  # 0 is the clean condition, which is always there
    if not chosen or not grades:
        raise ValueError(
            f"got {len(chosen)} corruptions and severities {list(severities)}; at least one of "
            "each is needed."
        )
    conditions = [Condition(corruption, grade) for corruption in chosen for grade in grades]
    for condition in conditions:
        _ = condition.level  # refuses a severity that is not known before anything runs
    return [Condition(), *conditions]


def require_complete(report: Mapping[str, Any]) -> None:
    """Tell the caller if a study failed, as an evaluation does.

    Raises
    ------
    CohortIncomplete
        If one did, in any condition; the figures of the others have been written.
    """
    told = [f"\n  {name}: {message}" for name, message in report["failed"].items()]
    for row in report["rows"]:
        place = f"{row['corruption']} {row['severity']}"
        told += [f"\n  {name}, {place}: {message}" for name, message in row["failed"].items()]
    if told:
        raise CohortIncomplete(f"stress test incomplete, {len(told)} failures:{''.join(told)}")


class StressBench:
    """A model with what is needed to run it over studies under conditions.

    Parameters
    ----------
    subject : Subject
    conditions : sequence of Condition
    store : Store
        Where counts are kept between runs.
    batch_size : int, optional
    seed : int

    Attributes
    ----------
    unread : dict
        Message of each case that could not be read.
    failures : dict
        The same of each condition for cases that failed in it alone.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        conditions: Sequence[Condition],
        store: Store,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.subject, self.seed = subject, seed
        self.read, self.normalise = split_preprocessing(subject.kind)
        self.inferer = subject.inferer(batch_size)
        self.store = store
        self.tallies = {condition: Tally() for condition in conditions}
        self.unread: dict[str, str] = {}
        self.failures: dict[Condition, dict[str, str]] = {c: {} for c in conditions}

    def run(self, cases: Sequence[dict[str, Any]], *, progress: bool) -> None:
        """Count all studies; those that are stored are not read again."""
        total = len(cases) * len(self.tallies)
        with tqdm(total=total, desc="stress test", disable=not progress) as bar:
            for case in cases:
                results = self.store.load(case)
                missing = [c for c in self.tallies if c.key not in results]
                bar.update(len(self.tallies) - len(missing))
                if missing:
                    self._study(case, missing, results, bar.update)
                for condition, tally in self.tallies.items():
                    if condition.key in results:
                        tally.add(case, results[condition.key])

    def row(self, condition: Condition) -> dict[str, Any]:
        """Figures of a condition."""
        return {
            "corruption": condition.name,
            "severity": condition.severity,
            "level": condition.level,
            "unit": condition.corruption.unit if condition.corruption else None,
            **self.tallies[condition].figures(self.subject.calibration),
            "failed": self.failures[condition],
        }

    def _study(
        self,
        case: dict[str, Any],
        conditions: Sequence[Condition],
        results: dict[str, Result | None],
        advance: Callable[[int], Any],
    ) -> None:
        """Add a study's results under conditions; what fails is reported and stops nothing."""
        corrupt = self._open(case)
        if corrupt is None:
            advance(len(conditions))
            return
        try:
            for condition in conditions:
                try:
                    results[condition.key] = self._measure(corrupt, condition)
                except Exception as error:
                    place = f"{corrupt.case}, {condition.name} {condition.severity},"
                    self.failures[condition][corrupt.case] = _report(place, error)
                advance(1)
        finally:  # an interruption keeps what is done
            self.store.save(case, results)

    def _open(self, case: dict[str, Any]) -> StudyCorruptor | None:
        """Read a study, or keep why it cannot be read."""
        name = str(case["case"])
        try:
            sample: dict[str, Any] = StudyDataset([case], self.read)[0]
            if "error" in sample:
                logger.error("study %s failed: %s", name, sample["error"])
                self.unread[name] = sample["error"]
                return None
            return StudyCorruptor(
                sample["image"],
                modality=self.subject.kind,
                case=name,
                mask=sample["label"],
                seed=self.seed,
            )
        except Exception as error:
            self.unread[name] = _report(name, error)
            return None

    def _measure(self, corrupt: StudyCorruptor, condition: Condition) -> Result | None:
        """Result of the study under a condition; None where it does not apply."""
        image, label = corrupt.volume, corrupt.mask
        if condition.corruption is not None:
            if not corrupt.applies(condition.corruption):
                return None
            image, label = corrupt(condition.corruption, condition.severity)
        normalised: MetaTensor = self.normalise({"image": image})["image"]
        heatmap = self.inferer(normalised[None], self.subject.runner)[0]
        sample = {"image": normalised, "label": label, "pred": heatmap}
        axis = self.subject.kind.slice_axis
        return study_result(counted_slices(sample, axis, self.subject.slice_range), axis)


def _report(place: str, error: Exception) -> str:
    """Log that a study failed, and say why."""
    message = root_message(error)
    logger.error("study %s failed: %s", place, message)
    logger.debug("study %s", place, exc_info=error)
    return message
