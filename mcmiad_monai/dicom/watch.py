"""New series of an Orthanc are analysed as they come, each once, and results stored back."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.analyst import DONE, FAILED, Analyst, Outcome
from mcmiad_monai.dicom.answers import Sender
from mcmiad_monai.dicom.feed import LONGEST, PAUSE, Feed, Item
from mcmiad_monai.dicom.orthanc import ArchivedSeries, Orthanc
from mcmiad_monai.dicom.position import BEGUN, WRITTEN, Place, Position, Records, only_watcher
from mcmiad_monai.dicom.send import LEDGER, SendLedger, send, sender_to
from mcmiad_monai.dicom.series import shown
from mcmiad_monai.dicom.status import Status, serve
from mcmiad_monai.files.room import DiskFullError
from mcmiad_monai.modality import MODALITIES
from mcmiad_monai.runtime.interrupts import held

logger = logging.getLogger(__name__)

RESULTS, INCOMING = "results", "incoming"
#: How often a series may end the watcher itself, as by its memory, before it is left alone.
ATTEMPTS = 3
ENDED = ("done", "refused", "failed")


class Watcher:
    """Takes series from a feed to their end.

    For each series, in this order: its record says that it is begun; its results are written; the
    record says so; they are sent; the record says that it has ended; the position goes on. A kill
    anywhere between two of these repeats what is between, and no result is there twice.

    Parameters
    ----------
    folder : Path
        Of position, records and results.
    analyst : Analyst
    sender : Sender
        Of results.
    position : Position
    status : Status
    keep : bool
        Keep the files of results that were sent.
    """

    def __init__(
        self,
        folder: Path,
        analyst: Analyst,
        sender: Sender,
        position: Position,
        status: Status,
        *,
        keep: bool = False,
    ) -> None:
        self._folder, self._analyst, self._sender = folder, analyst, sender
        self._position, self._status, self._keep = position, status, keep
        self._records = Records(folder)
        self.ended = dict.fromkeys(ENDED, 0)

    def is_known(self, series: ArchivedSeries) -> bool:
        """Whether a series has ended with the instances that it has, and was counted."""
        record = self._records.read(series.id)
        return self._has_ended(record, series) and record["number"] <= self._position.total

    def handle(self, item: Item) -> None:
        """Bring an item to its end, and go on to its place."""
        if item.series is not None:
            self._end(item.series, item)
        with held():
            self._position.save(item.place)

    @staticmethod
    def _has_ended(record: dict[str, Any], series: ArchivedSeries) -> bool:
        same = record.get("fingerprint") == series.fingerprint
        return same and record.get("status") in ENDED

    def _end(self, series: ArchivedSeries, item: Item) -> None:
        record = self._records.read(series.id)
        if not self._has_ended(record, series):
            self._status.state("at work")
            record = self._worked(series, item, record)
            with held():
                record["number"] = self._position.total + 1
                self._records.write(series.id, record)
        if not (self._keep or record.get("unsent")):
            shutil.rmtree(self._results_of(series), ignore_errors=True)
        if record["number"] > self._position.total:
            self._position.counts[record["status"]] += 1
            self._status.ended(record["status"], record.get("seconds"))
            self.ended[record["status"]] += 1

    def _results_of(self, series: ArchivedSeries) -> Path:
        return self._folder / RESULTS / series.id

    def _worked(self, series: ArchivedSeries, item: Item, record: dict[str, Any]) -> dict[str, Any]:
        """The record of a series that has ended, which is not written yet."""
        same = record.get("fingerprint") == series.fingerprint
        if record and not same:
            logger.warning(
                "series %s has other instances than when it was analysed; it is analysed again, "
                "and the results of then stay in the archive",
                shown(series.uid),
            )
        if not (same and record.get("status") == WRITTEN):
            record = self._analysed(series, item, record if same else {})
        if record["status"] == WRITTEN:
            record |= self._sent(series)
        reason = record.get("reason")
        if reason:
            self._status.error(f"a series {record['status']}: {reason}")
            logger.error("series %s %s: %s", shown(series.uid), record["status"], reason)
        return record

    def _analysed(
        self, series: ArchivedSeries, item: Item, record: dict[str, Any]
    ) -> dict[str, Any]:
        """The record of a series whose results are written, or that has none."""
        attempts = int(record.get("attempts", 0))
        record = {
            "series": series.uid,
            "fingerprint": series.fingerprint,
            "status": BEGUN,
            "attempts": attempts + 1,
            "model": self._analyst.predictor.made_with.get("model"),
        }
        if item.folder is None:
            return record | {"status": FAILED, "reason": item.failure}
        if attempts >= ATTEMPTS:
            reason = f"it ended the watcher {attempts} times; look at it, and at the memory"
            return record | {"status": FAILED, "reason": reason}
        self._records.write(series.id, record)
        try:
            outcome = self._outcome(series, item.folder)
        except KeyboardInterrupt:  # it is not the series
            self._records.write(series.id, record | {"attempts": attempts})
            raise
        told = asdict(outcome) | {"files": {k: file.name for k, file in outcome.files.items()}}
        record |= {**told, "time": time.time()}
        if outcome.status == DONE:
            record["status"] = WRITTEN
            self._records.write(series.id, record)
        return record

    def _outcome(self, series: ArchivedSeries, folder: Path) -> Outcome:
        """Analyse; a full disk is waited for."""
        pause, out = PAUSE, self._results_of(series)
        while True:
            shutil.rmtree(out, ignore_errors=True)
            try:
                out.mkdir(parents=True)
                return self._analyst(folder, out)
            except DiskFullError as error:
                pause = self._wait(str(error), pause, up=True)

    def _sent(self, series: ArchivedSeries) -> dict[str, Any]:
        """Send results until the archive has said yes or no to each."""
        pause, out = PAUSE, self._results_of(series)
        ledger = SendLedger(out / LEDGER, self._sender.target)
        files = sorted(out.glob("*.dcm"))
        while True:
            sent = send(files, self._sender, ledger, attempts=2)
            if not sent.lost:
                break
            pause = self._wait(next(iter(sent.unsent.values())), pause, up=False)
        if not sent.unsent:
            return {"status": DONE}
        told = {file.name: why for file, why in sent.unsent.items()}
        why = f"{len(told)} results were not taken and stay in {out}: {next(iter(told.values()))}"
        return {"status": FAILED, "reason": why, "unsent": told}

    def _wait(self, why: str, pause: float, *, up: bool) -> float:
        """Wait; how long the next time."""
        self._status.error(why)
        self._status.state(f"waiting: {why}", up=up)
        logger.warning("%s; tried again in %g s", why, pause)
        time.sleep(pause)
        self._status.state("at work")
        return min(2 * pause, LONGEST)


def watch(
    url: str,
    out: Path,
    open_analyst: Callable[[], Analyst],
    *,
    target: str | None = None,
    keep: bool = False,
    port: int = 0,
    poll: float = 5.0,
    once: bool = False,
    new_only: bool = False,
) -> int:
    """Analyse new series of an Orthanc until a signal comes.

    Parameters
    ----------
    url : str
        Of Orthanc's REST interface.
    out : Path
        Folder of the position, the records and the results; made for its owner alone.
    open_analyst : callable
        Opens the model.
    target : str, optional
        Where results go, see `sender_to`; the same Orthanc by default.
    keep : bool
        Keep the files of results that were sent.
    port : int
        Of the status page on 127.0.0.1; 0 for a free one.
    poll : float
        Seconds between looks.
    once : bool
        End when all that has come is done.
    new_only : bool
        At the first start, pass over all that is in the archive.

    Returns
    -------
    int
        With `once`: 0, or 1 if a series of this run was refused or failed.

    Raises
    ------
    ValueError
        If an address or the folder cannot be used.
    ArchiveLostError
        If the archive does not answer at the first start.
    KeyboardInterrupt
        At a signal; the series that was computed is dropped, and is the first one of the next run.
    """
    orthanc = Orthanc(url)
    # a session of its own: the feed asks meanwhile
    sender: Sender = sender_to(target) if target else Orthanc(url)
    with ExitStack() as stack:
        stack.enter_context(only_watcher(out))
        position = Position(out, orthanc.url)
        if position.is_new:
            orthanc.check()  # later it may start after the watcher
        if position.is_new and new_only:
            position.save(Place(orthanc.last_change()))
        status = Status(orthanc.url, position.counts)
        logger.info("status: %s", stack.enter_context(serve(status, port)))
        analyst = open_analyst()
        watcher = Watcher(out, analyst, sender, position, status, keep=keep)
        feed = stack.enter_context(
            Feed(
                orthanc,
                position.place,
                out / INCOMING,
                status,
                modalities=modalities_of(analyst),
                is_known=watcher.is_known,
                poll=poll,
                once=once,
            )
        )
        try:
            while (item := feed.next()) is not None:
                status.moved(position.place.since, feed.pending)
                watcher.handle(item)
                feed.done(item)
                status.moved(position.place.since, feed.pending)
        except KeyboardInterrupt as stop:
            stop.args = (told(watcher.ended),)
            raise
    logger.info("%s: %s", out, told(watcher.ended))
    return int(watcher.ended["refused"] + watcher.ended["failed"] > 0)


def modalities_of(analyst: Analyst) -> set[str]:
    """Codes (0008,0060) of series that a model looks at."""
    kind = analyst.predictor.modality
    kinds = MODALITIES.values() if kind.is_unified else (kind,)
    return {one.dicom for one in kinds if one.dicom is not None}


def told(ended: dict[str, int]) -> str:
    """Counts for people."""
    return ", ".join(f"{count} series {status}" for status, count in ended.items())
