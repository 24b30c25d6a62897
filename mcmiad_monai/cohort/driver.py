"""Handing studies to workers, one at a time each, whatever the workers are.

A study that kills its worker is known: it is the only one that the worker had. It runs again when
all others are through, and after so many deaths it is left alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from mcmiad_monai.cohort.ledger import Ledger, Row, Study
from mcmiad_monai.files.leftovers import remove_leftovers

logger = logging.getLogger(__name__)

#: Workers that a study may kill before it is left alone.
ATTEMPTS = 3


class WorkersError(RuntimeError):
    """Workers cannot work at all, whatever the study: no model, no room, no memory to start."""


class Workers(Protocol):
    """Processes that do studies, on this machine or on others.

    Attributes
    ----------
    count : int
        How many there are; they are numbered from 0.
    """

    count: int

    def start(self, k: int) -> None:
        """Start worker `k`, or start it again after it has died."""

    def give(self, k: int, study: Study) -> None:
        """Ask worker `k`, which has none, to do a study.

        It writes the lines ``begin`` and ``end`` into a `Ledger` of its own. It may be asked
        before it is ready. That it is dead already is told by `wait`.
        """

    def wait(self) -> list[tuple[int, Row | None]]:
        """Wait until something has happened, for a few seconds at most.

        Returns
        -------
        list of (int, dict or None)
            Workers that ended their study, with the line of its end; or died with it, None.

        Raises
        ------
        WorkersError
            If a worker died before it could do any study, with its reason.
        """

    def stop(self) -> None:
        """End all workers; one that has a study drops it with the line ``stopped``."""


def run(
    studies: Iterable[tuple[Study, int]],
    workers: Workers,
    ledger: Ledger,
    *,
    attempts: int = ATTEMPTS,
    ended: Callable[[Row], object] = id,
) -> None:
    """Do studies to their end.

    Parameters
    ----------
    studies : iterable of (dict, int)
        Studies without an end, and how many workers each has killed so far.
    workers : Workers
        Not started.
    ledger : Ledger
        Of the driver itself, for studies that no worker gets: refused in the plan, or quarantined.
    attempts : int
        Workers that a study may kill.
    ended : callable
        Is told the line of each end.

    Raises
    ------
    WorkersError
        If a worker cannot start, or cannot go on.
    KeyboardInterrupt
        If a signal came; workers have dropped what they had.
    """
    queue = _Queue(studies, ledger, attempts, ended)
    busy: dict[int, tuple[Study, int]] = {}
    try:
        for k in range(workers.count):
            if not _give(k, workers, queue, busy, start=True):
                break  # fewer studies than workers
        while busy:
            for k, row in workers.wait():
                study, deaths = busy.pop(k)
                if row is None:
                    queue.put_back(study, deaths + 1)
                else:
                    ended(row)
                _give(k, workers, queue, busy, start=row is None)
    finally:
        workers.stop()


def _give(
    k: int, workers: Workers, queue: _Queue, busy: dict[int, tuple[Study, int]], *, start: bool
) -> bool:
    """Give a worker the next study, if there is one, and start it before if need be."""
    following = next(queue, None)
    if following is None:
        return False
    if start:
        workers.start(k)
    busy[k] = following
    workers.give(k, following[0])
    return True


class _Queue(Iterator[tuple[Study, int]]):
    """Studies for workers; those that need none are ended here."""

    def __init__(
        self,
        studies: Iterable[tuple[Study, int]],
        ledger: Ledger,
        attempts: int,
        ended: Callable[[Row], object],
    ) -> None:
        self._studies, self._ledger = iter(studies), ledger
        self._attempts, self._ended = attempts, ended
        self._later: deque[tuple[Study, int]] = deque()

    def __next__(self) -> tuple[Study, int]:
        for study, deaths in self._studies:
            if reason := study.get("refused"):
                self._ended(self._ledger.end(study, status="refused", error=str(reason)))
            elif deaths >= self._attempts:
                self._quarantine(study, deaths)
            else:
                return study, deaths
        if self._later:
            return self._later.popleft()
        raise StopIteration

    def put_back(self, study: Study, deaths: int) -> None:
        """Take a study whose worker died."""
        logger.warning(
            "study %s: its worker died (%d of %d)", study["case"], deaths, self._attempts
        )
        if deaths >= self._attempts:
            self._quarantine(study, deaths)
        else:
            self._later.append((study, deaths))

    def _quarantine(self, study: Study, deaths: int) -> None:
        remove_leftovers(self._ledger.folder / str(study["case"]), levels=0)
        reason = f"its worker died {deaths} times with it; it is not tried again"
        logger.error("study %s is quarantined: %s", study["case"], reason)
        row = self._ledger.end(study, status="quarantined", error=reason, attempts=deaths)
        self._ended(row)
