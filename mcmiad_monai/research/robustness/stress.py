"""How far figures fall, and false alarms rise, when images get worse.

Every study is read once, and all conditions run on it in memory: reading and orienting a study
costs as much as its inference on a GPU, and there are about fifty conditions. The results of a
study are stored when it is done (see `tally`): an interrupted run goes on where it was, and studies
or conditions that are asked for later are added to the stored ones.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from tqdm import tqdm

from mcmiad_monai.data.studies import prepare_study
from mcmiad_monai.errors import root_message
from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.inference.cohort import CohortIncomplete
from mcmiad_monai.inference.evaluation import counted_slices
from mcmiad_monai.modality import MODALITIES, Modality, get_modality
from mcmiad_monai.predictor import MODEL, Predictor, load
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.robustness.corruptions import (
    SEVERITIES,
    StudyCorruptor,
    corruptions_for,
)
from mcmiad_monai.research.robustness.stress_report import failures_of, write_report
from mcmiad_monai.research.robustness.tally import Condition, Result, Store, Tally, study_result
from mcmiad_monai.transforms import CanonicalOrientationd
from mcmiad_monai.version import __version__

logger = logging.getLogger(__name__)
Case = Mapping[str, Any]


def run_stress(
    model: str | Path,
    cases: Sequence[Case],
    *,
    out: str | Path,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    modality: str | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a trained model on studies under graded corruptions.

    Writes ``stress.json``, ``stress.csv``, ``stress.md``, ``stress.png`` and, with the scores of
    the studies as they are, ``studies.csv``. The figures of the condition ``clean`` are those of
    an evaluation. A study that cannot be read or inferred is reported and left out; it is tried
    again when the test is run again.

    Parameters
    ----------
    model : path
        Folder of a trained bundle, or its ``model.pt``; see `load`.
    cases : sequence of mapping
        As `find_cases` returns them.
    out : path
        Folder of the report; its folder ``partial`` holds the results of the studies.
    corruptions : sequence of str, optional
        Names; all of the modality by default.
    severities : sequence of int
        From 1 to 5; the studies as they are, severity 0, are always measured.
    modality : str, optional
        Modality of the studies, for a unified model, which is measured in one at a time; by
        default the only one that the cases name. Cases that name another are left out.

    Returns
    -------
    dict
        Content of ``stress.json``.

    Raises
    ------
    ValueError
        If there are no cases, two have one name, a corruption or severity is not known, or the
        model does not fit `modality`.
    WeightsError
        If the file is not a model of this project, or does not name the modality of its training.
    """
    predictor = load(model, device=device)
    if predictor.detector.image_options["keep_colours"]:
        raise ValueError(
            f"{model} was trained on colours, and corruptions are of grey images. Stress a model "
            "that was trained with keep_colours false."
        )
    kind = choose_modality(predictor.modality, modality, cases)
    calibration = predictor.calibration_of(kind.name)
    conditions = choose_conditions(kind, corruptions, severities)
    chosen = cases_of(cases, kind)
    options: dict[str, Any] = {
        "model_sha256": file_sha256(Path(model) / MODEL if Path(model).is_dir() else Path(model)),
        "modality": kind.name,
        "slice_range": list(predictor.slice_range),
        "engine": predictor.engine,
        "seed": seed,
    }
    store = Store(Path(out) / "partial", {**options, "version": __version__})
    bench = StressBench(predictor, kind, conditions, store, seed)
    bench.run(chosen, progress=progress)
    report = {
        **options,
        "rows": [
            {**c.row(), **tally.figures(calibration), "failed": bench.failures[c]}
            for c, tally in bench.tallies.items()
        ],
        "failed": bench.unread,
        "calibration": calibration.to_dict() if calibration else {},
        "provenance": predictor.detector.provenance,
        "measured_with": produced_with(),
    }
    write_report(report, bench.tallies[conditions[0]].studies, Path(out))
    return report


def choose_modality(trained: Modality, modality: str | None, cases: Sequence[Case]) -> Modality:
    """Modality to measure: that of the model or, for a unified one, that of the studies."""
    if not trained.is_unified:
        if modality not in (None, trained.name):
            raise ValueError(
                f"the model was trained for {trained.name}, and the studies are said to be "
                f"{modality}; give the model of that modality, or a unified one."
            )
        return trained
    named = {str(case["modality"]) for case in cases if case.get("modality")}
    if modality is not None:
        named = {modality}
    if len(named) != 1 or not named <= set(MODALITIES):
        raise ValueError(
            f"the model is a unified one, and a test measures one modality at a time, while the "
            f"studies name {sorted(named) or 'none'}. Name one of {sorted(MODALITIES)} "
            "(--modality)."
        )
    return get_modality(named.pop())


def cases_of(cases: Sequence[Case], kind: Modality) -> list[Case]:
    """Cases that name this modality or none; each must have a name of its own."""
    kept = [case for case in cases if case.get("modality") in (None, kind.name)]
    if len(kept) < len(cases):
        logger.info("%d cases of other modalities are left out", len(cases) - len(kept))
    counts = Counter(str(case["case"]) for case in kept)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if not kept or twice:
        raise ValueError(
            f"got {len(kept)} cases of {kind.name}, with the names {twice[:5]} more than once; at "
            "least one case and a name of its own for each are needed, as find_cases gives them."
        )
    return kept


def choose_conditions(
    kind: Modality, corruptions: Sequence[str] | None, severities: Sequence[int]
) -> list[Condition]:
    """The clean condition, and every corruption at every severity, in order."""
    known = corruptions_for(kind)
    names = list(known if corruptions is None else dict.fromkeys(corruptions))
    grades = sorted(set(severities) - {0})  # 0 is the clean condition, which is always there
    for name in names:
        if name not in known:
            raise ValueError(
                f"corruption {name!r} is not one of {kind.name}; choose from {', '.join(known)}."
            )
    for grade in grades:
        if grade not in SEVERITIES:
            raise ValueError(
                f"severity {grade!r} is not known; choose from {SEVERITIES}, or 0 for the study "
                "as it is."
            )
    if not names or not grades:
        raise ValueError(
            f"got {len(names)} corruptions and severities {list(severities)}; at least one of "
            "each is needed."
        )
    return [Condition(), *(Condition(known[name], grade) for name in names for grade in grades)]


def require_complete(report: Mapping[str, Any]) -> None:
    """Raise CohortIncomplete if a study failed in any condition; the others have been written."""
    lines = failures_of(report)
    if lines:
        text = "".join(f"\n  {line}" for line in lines)
        raise CohortIncomplete(f"stress test incomplete, {len(lines)} failures:{text}")


def split_steps(predictor: Predictor) -> tuple[Compose, Compose]:
    """The steps of a predictor in two: reading with orientation, and what follows."""
    steps = list(predictor.transforms(label=True).transforms)
    cut = 1 + next(i for i, step in enumerate(steps) if isinstance(step, CanonicalOrientationd))
    return Compose(steps[:cut]), Compose(steps[cut:])


class StressBench:
    """A model that runs over studies of one modality under conditions.

    Attributes
    ----------
    tallies : dict
        Figures by condition.
    unread : dict
        Message of each case that could not be read.
    failures : dict
        By condition, messages of cases that failed in it alone.
    """

    def __init__(
        self,
        predictor: Predictor,
        kind: Modality,
        conditions: Sequence[Condition],
        store: Store,
        seed: int,
    ) -> None:
        self.predictor, self.kind, self.store, self.seed = predictor, kind, store, seed
        self.read, self.finish = split_steps(predictor)
        self.tallies = {condition: Tally() for condition in conditions}
        self.unread: dict[str, str] = {}
        self.failures: dict[Condition, dict[str, str]] = {c: {} for c in conditions}

    def run(self, cases: Sequence[Case], *, progress: bool) -> None:
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

    def _study(
        self,
        case: Case,
        conditions: Sequence[Condition],
        results: dict[str, Result | None],
        advance: Callable[[int], Any],
    ) -> None:
        """Add a study's results under conditions; what fails is reported and stops nothing."""
        name = str(case["case"])
        try:
            sample = prepare_study({**case, "modality": self.kind.name}, self.read)
            corrupt = StudyCorruptor(sample["image"], modality=self.kind, case=name, seed=self.seed)
        except Exception as error:
            self.unread[name] = _report(name, error)
            advance(len(conditions))
            return
        try:
            for condition in conditions:
                try:
                    results[condition.key] = self._measure(sample, corrupt, condition)
                except Exception as error:
                    place = f"{name}, {condition.row()['corruption']} {condition.severity},"
                    self.failures[condition][name] = _report(place, error)
                advance(1)
        finally:  # an interruption keeps what is done
            self.store.save(case, results)

    def _measure(
        self, sample: Mapping[str, Any], corrupt: StudyCorruptor, condition: Condition
    ) -> Result | None:
        """Result of a study under a condition; None if the study cannot show it."""
        changed, corruption = dict(sample), condition.corruption
        if corruption is not None:
            if not corrupt.applies(corruption):
                return None
            changed["image"] = corrupt(corruption, condition.severity)
            for key in {"label", "organ"} & set(changed):
                changed[key] = corrupt.moved(changed[key], corruption, condition.severity)
        changed = self.finish(changed)  # image and mask
        axis, slice_range = self.predictor.slice_axis, self.predictor.slice_range
        found = {**changed, "pred": self.predictor.heat(changed["image"])}
        return study_result(counted_slices(found, axis, slice_range), axis)


def _report(place: str, error: Exception) -> str:
    """Log that a study failed, and return why."""
    message = root_message(error)
    logger.error("study %s failed: %s", place, message)
    logger.debug("study %s", place, exc_info=error)
    return message
