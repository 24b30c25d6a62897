"""Series of an Orthanc as they become stable, fetched ahead of their analysis by one."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.orthanc import ArchivedSeries, ArchiveLostError, GoneError, Orthanc
from mcmiad_monai.dicom.position import Place
from mcmiad_monai.dicom.status import Status

logger = logging.getLogger(__name__)

#: Series on disk at a time: the one that is analysed, and the next.
AHEAD = 2
#: Seconds before the archive is asked again after an error; doubled each time up to the longest.
PAUSE, LONGEST = 1.0, 60.0
#: Tries to fetch a series of an archive that answers to all else.
FETCHES = 4
NEW, STABLE = "NewSeries", "StableSeries"


@dataclass(frozen=True)
class Item:
    """What the feed has come to.

    Attributes
    ----------
    place : Place
        To go on from once the item is done.
    series : ArchivedSeries, optional
        To analyse; None where there is nothing to do up to the place.
    folder : Path, optional
        With the files of the series.
    failure : str
        Why they could not be fetched, if so.
    """

    place: Place
    series: ArchivedSeries | None = None
    folder: Path | None = None
    failure: str = ""


class Feed:
    """A thread that reads changes and fetches series; it waits where the analysis is behind.

    A series is stable where Orthanc says so in its changes. Those that were coming when Orthanc
    was stopped are never told stable; they are asked for themselves once all changes are read.

    Parameters
    ----------
    orthanc : Orthanc
    place : Place
        Where to begin.
    folder : Path
        For the files of series; emptied at the start.
    status : Status
    modalities : collection of str
        Codes of the headers of series that the model looks at.
    is_known : callable
        Whether a series has ended as it is, and need not be fetched.
    poll : float
        Seconds between looks.
    once : bool
        End where nothing is left.
    """

    def __init__(
        self,
        orthanc: Orthanc,
        place: Place,
        folder: Path,
        status: Status,
        *,
        modalities: Collection[str],
        is_known: Callable[[ArchivedSeries], bool],
        poll: float,
        once: bool = False,
    ) -> None:
        self._orthanc, self._folder, self._status = orthanc, folder, status
        self._modalities, self._is_known = frozenset(modalities), is_known
        self._poll, self._once = poll, once
        self._since, self._unsettled = place.since, dict.fromkeys(place.unsettled)
        self._items: queue.Queue[Item | None] = queue.Queue()
        self._free = threading.Semaphore(AHEAD)
        self._stop = threading.Event()
        self._fetched = 0
        self._offered = self._done = 0  # one thread writes each
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> Feed:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._free.release()
        self._thread.join(timeout=5)  # it may be waiting for the archive
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pending(self) -> int:
        """Series that have begun to come, wait, or are analysed."""
        return len(self._unsettled) + self._offered - self._done

    def next(self) -> Item | None:
        """What comes next; waits for it. None at the end of a feed that ends."""
        return self._items.get()

    def done(self, item: Item) -> None:
        """The item is done: another one may be fetched."""
        if item.folder is not None:
            shutil.rmtree(item.folder, ignore_errors=True)
        if item.series is not None:
            self._done += 1
            self._free.release()

    def _run(self) -> None:
        pause = PAUSE
        while not self._stop.is_set():
            try:
                if self._look():
                    break
                pause = PAUSE
            except Exception as error:  # of the archive, or of our own disk: both may pass
                self._status.error(str(error))
                self._status.state(f"waiting: {error}", up=not isinstance(error, ArchiveLostError))
                logger.warning("%s; tried again in %g s", error, pause)
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST)
        self._items.put(None)

    def _look(self) -> bool:
        """Read what is new; whether that was the end."""
        if self._orthanc.last_change() < self._since:
            logger.warning("the changes of %s begin anew; all are read", self._orthanc.url)
            self._since = 0
        complete = False
        while not complete and not self._stop.is_set():
            changes, complete = self._orthanc.changes(self._since)
            for change in changes:
                self._read(change)
            if changes:
                self._items.put(Item(self._place()))
        for name in tuple(self._unsettled):
            self._settle(name)
        if self._once and not self._unsettled:
            return True
        self._status.state("watching")
        self._stop.wait(self._poll)
        return False

    def _place(self) -> Place:
        return Place(self._since, tuple(self._unsettled))

    def _read(self, change: dict[str, Any]) -> None:
        name, kind = str(change["ID"]), change["ChangeType"]
        if kind == NEW:
            self._unsettled[name] = None
        elif kind == STABLE:
            self._offer(name, int(change["Seq"]))
        self._since = int(change["Seq"])

    def _settle(self, name: str) -> None:
        """Offer a series that is stable although no change has said it."""
        try:
            stable = self._orthanc.series(name).stable
        except GoneError:
            del self._unsettled[name]
            return
        if stable:
            self._offer(name, self._since)

    def _offer(self, name: str, since: int) -> None:
        """Fetch a series if it is one to analyse. An error leaves all as it was."""
        unsettled = tuple(other for other in self._unsettled if other != name)
        try:
            series = self._orthanc.series(name)
            if not self._is_wanted(series):
                self._unsettled.pop(name, None)
                return
            while not self._free.acquire(timeout=1):
                if self._stop.is_set():
                    return
            try:
                item = self._fetch(series, Place(since, unsettled))
            except BaseException:
                self._free.release()
                raise
        except GoneError:
            self._unsettled.pop(name, None)
            return
        self._offered += 1
        self._items.put(item)
        self._unsettled.pop(name, None)

    def _is_wanted(self, series: ArchivedSeries) -> bool:
        if series.passed_over or series.modality not in self._modalities:
            return False
        return not self._is_known(series)

    def _fetch(self, series: ArchivedSeries, place: Place) -> Item:
        """The files; a failure where only this series cannot be had."""
        self._fetched += 1
        folder = self._folder / str(self._fetched)
        for attempt in range(FETCHES):
            try:
                shutil.rmtree(folder, ignore_errors=True)
                self._orthanc.fetch(series, folder)
                return Item(place, series, folder)
            except ArchiveLostError as error:
                failure = str(error)
                self._stop.wait(PAUSE * attempt)
                self._orthanc.check()  # else it is not the series
        return Item(place, series, None, failure)
