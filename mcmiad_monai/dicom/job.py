"""One folder of DICOM in, one folder of DICOM and ``result.json`` out; see `run_job`."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.analyst import DONE, FAILED, REFUSED, Analyst, Outcome
from mcmiad_monai.dicom.send import LEDGER, SendLedger, Sent, send, sender_to
from mcmiad_monai.dicom.series import Series, find_series_below, lay_out, shown
from mcmiad_monai.dicom.web import OWN_DESCRIPTION
from mcmiad_monai.files.room import DiskFullError
from mcmiad_monai.files.writing import write_text
from mcmiad_monai.runtime.interrupts import held

logger = logging.getLogger(__name__)

RESULT = "result.json"


class JobError(ValueError):
    """A folder in or out cannot be used."""


class Job:
    """What ``mcmiad dicom`` does with one folder.

    Parameters
    ----------
    source : Path
        Folder of DICOM files of any series, in any order and depth; it is only read.
    out : Path
        Folder of the results, beside each other, and of ``result.json``.

    Attributes
    ----------
    content : dict
        What ``result.json`` holds: ``series`` with the status, the reason, scores and files of
        each; ``passed_over``, ``not_read`` and ``counts``; and ``sent``, where it was asked for.

    Raises
    ------
    JobError
        If there is no such folder or no series in it, or one folder lies in the other.
    """

    def __init__(self, source: Path, out: Path) -> None:
        if not source.is_dir():
            raise JobError(f"{source} is no folder; a folder with DICOM files is needed.")
        inside, outside = source.resolve(), out.resolve()
        if inside == outside or inside in outside.parents or outside in inside.parents:
            raise JobError(f"{out} and {source} lie in each other; results need a folder beside.")
        self.source, self.out = source, out
        found, unread = find_series_below(source)
        if not found:
            told = "".join(f"; {count} files: {reason}" for reason, count in unread.items())
            raise JobError(f"{source} holds no DICOM series{told}.")
        self.studies = [series for series in found if not series.passed_over]
        passed = [{"series": s.uid, "reason": s.passed_over} for s in found if s.passed_over]
        self._outcomes: list[tuple[Series, Outcome]] = []
        self.content: dict[str, Any] = {
            "note": OWN_DESCRIPTION,
            "series": [],
            "passed_over": passed,
            "not_read": unread,
            "counts": dict.fromkeys((DONE, REFUSED, FAILED), 0),
            "not_done": [series.uid for series in self.studies],
        }

    @property
    def files(self) -> list[Path]:
        """Results of all series."""
        return [file for _, outcome in self._outcomes for file in outcome.files.values()]

    def run(self, analyst: Analyst) -> None:
        """Analyse each series, and write ``result.json`` at the end, also of a signal.

        What an earlier ``result.json`` lists of other results is removed.
        """
        self.content["made_with"] = analyst.predictor.made_with
        self.out.mkdir(parents=True, exist_ok=True)
        before = _files_of(self.out / RESULT)
        try:
            with tempfile.TemporaryDirectory(prefix="mcmiad_") as folder:
                for number, series in enumerate(self.studies):
                    linked = lay_out(series.files.values(), Path(folder) / str(number))
                    try:
                        outcome = analyst(linked, self.out)
                    except DiskFullError as error:  # the next series may need less
                        outcome = Outcome(FAILED, str(error))
                    self._keep(series, outcome)
        finally:
            with held():
                for name in before - {file.name for file in self.files}:
                    (self.out / name).unlink(missing_ok=True)
                self.write()

    def _keep(self, series: Series, outcome: Outcome) -> None:
        self._outcomes.append((series, outcome))
        told: dict[str, Any] = {
            "series": series.uid,
            "study": series.study,
            "status": outcome.status,
        }
        told |= {"reason": outcome.reason} if outcome.reason else {}
        names = {kind: file.name for kind, file in outcome.files.items()}
        told |= {**outcome.scores, "files": names, "seconds": outcome.seconds}
        self.content["series"].append(told)
        self.content["counts"][outcome.status] += 1
        self.content["not_done"].remove(series.uid)
        if outcome.reason:
            logger.error("series %s %s: %s", shown(series.uid), outcome.status, outcome.reason)

    def send(self, target: str) -> Sent:
        """Send the results; ``result.json`` then has what became of each."""
        sender = sender_to(target)
        sent = send(self.files, sender, SendLedger(self.out / LEDGER, sender.target))
        self.content["sent"] = {
            "target": sent.target,
            "stored": [file.name for file in sent.stored],
            "before": [file.name for file in sent.before],
            "warnings": {file.name: told for file, told in sent.warnings.items()},
            "unsent": {file.name: why for file, why in sent.unsent.items()},
        }
        self.write()
        return sent

    def write(self, **more: Any) -> None:
        """Write ``result.json``."""
        self.content |= more
        write_text(self.out / RESULT, json.dumps(self.content, indent=1) + "\n")


def summary(content: Mapping[str, Any]) -> str:
    """Counts of a result, for people."""
    counts = [f"{n} {status}" for status, n in content["counts"].items() if n or status == DONE]
    passed = len(content["passed_over"])
    counts += [f"{passed} passed over"] if passed else []
    anomalous = sum(bool(series.get("anomalous")) for series in content["series"])
    return f"{', '.join(counts)}; {anomalous} above the threshold ({OWN_DESCRIPTION})"


def _files_of(result: Path) -> set[str]:
    """Results that a ``result.json`` lists, as names in its folder."""
    names: set[str] = set()
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        for series in json.loads(result.read_text(encoding="utf-8"))["series"]:
            names |= {
                n for n in series["files"].values() if n == Path(n).name and n.endswith(".dcm")
            }
    return names
