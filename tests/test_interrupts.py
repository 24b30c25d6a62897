"""Signals: raised once, behind what is held to its end, and not lost where they are swallowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mcmiad_monai.cli.parser import main
from mcmiad_monai.runtime.interrupts import Terminated, check, held, raised


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_is_raised_at_once(number: int, kind: type[BaseException]) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, raised():
        send(number)
    assert caught.type is kind
    with raised():  # the next command knows nothing of it
        check()


def test_what_is_held_goes_to_its_end_first() -> None:
    done = []

    def work() -> None:
        with held():
            with held():
                send(signal.SIGTERM)
            done.append("all of it")

    with pytest.raises(Terminated), raised():
        work()
    assert done == ["all of it"]


def test_what_is_held_while_the_signal_is_handled_keeps_its_message() -> None:
    def work() -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt as stop:
            with held():
                send(signal.SIGTERM)  # as timeout does, to the process and to its group
            stop.args = ("3 done",)
            raise

    with pytest.raises(Terminated, match="3 done"), raised():
        work()


def test_a_swallowed_signal_ends_the_next_step() -> None:
    with raised():
        with suppress(KeyboardInterrupt):  # as in a callback of a library
            send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), held():
            pass


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raised():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("wait", "code"), [("0", 0), ("3", -signal.SIGTERM)])
def test_a_second_signal_later_ends_a_process_that_hangs(wait: str, code: int) -> None:
    script = f"""
import os, signal, time
from mcmiad_monai.cli.parser import main
from mcmiad_monai.runtime.interrupts import raised
with raised():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        time.sleep({wait})
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == code


def test_a_signal_that_became_another_error_is_told_as_a_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def imported(*_: object, **__: object) -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ImportError("problem in a module") from error

    monkeypatch.setattr("mcmiad_monai.cli.parser._prepare_computing", imported)
    assert main(["cases", str(tmp_path)]) == 143
    assert "interrupted by SIGTERM" in capsys.readouterr().err
