"""Signals that end a command, raised where nothing is left half done."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds in which a repeated signal is the same one: ``timeout`` and schedulers send it to a
#: process and to its group. A later one ends the process at once.
REPEATED = 2.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler or ``kill`` sends it; whatever ends for Ctrl-C ends for it."""


class _Received:
    """The signal that came, and how many `held` blocks it waits for."""

    number: int | None = None
    at = 0.0
    blocks = 0


@contextmanager
def raised() -> Iterator[None]:
    """Raise `Terminated` for SIGTERM and `KeyboardInterrupt` for SIGINT; see `held`.

    A signal that is ignored stays so, as in a command that a shell runs in the background. Outside
    of the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        repeated = _Received.number is not None
        if os.getpid() != owner or (repeated and time.monotonic() - _Received.at > REPEATED):
            signal.signal(number, signal.SIG_DFL)  # a worker that was forked, or a second wish
            os.kill(os.getpid(), number)
        elif not repeated:
            _Received.number, _Received.at = number, time.monotonic()
            if not _Received.blocks:
                check()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        yield
    finally:
        _Received.number = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Do something to its end: a signal that comes meanwhile is raised behind it.

    Not where the signal is what is being handled.
    """
    ending = isinstance(sys.exc_info()[1], KeyboardInterrupt)
    _Received.blocks += 1
    try:
        yield
    finally:
        _Received.blocks -= 1
    if not _Received.blocks and not ending:
        check()


def check() -> None:
    """Raise the signal that has come, also if what it met first has swallowed the exception."""
    if stop := received():
        raise stop


def received() -> KeyboardInterrupt | None:
    """The signal that has come; an import may turn its exception into an error of its own."""
    if _Received.number is None:
        return None
    return Terminated() if _Received.number == signal.SIGTERM else KeyboardInterrupt()
