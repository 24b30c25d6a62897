"""Two trainings never share a folder, and a folder that vanishes is noticed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.training import lock
from mcmiad_monai.training.lock import LOCK, FolderError, TrainingLock

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="starts are in /proc")


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which runs until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def held_by(folder: Path, pid: int, **changed: Any) -> dict[str, Any]:
    """Lock a folder as another process does it."""
    holder = {**lock._this_thread(), "pid": pid, "start": lock._start_of(pid), **changed}
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(holder))
    return holder


def test_a_second_training_is_refused_and_told_who_holds_the_folder(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    holder = held_by(tmp_path, other.pid)
    with pytest.raises(FolderError) as caught, TrainingLock(tmp_path):
        pass
    for part in (f"process {other.pid}", holder["host"], holder["since"], "Wait for its end"):
        assert part in str(caught.value)
    assert json.loads((tmp_path / LOCK).read_text()) == holder


def test_a_process_finds_the_folder_of_another_taken(tmp_path: Path, forked: Any) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from mcmiad_monai.training.lock import TrainingLock\n"
        f"with TrainingLock({str(tmp_path / 'models')!r}): print('trained')\n"
    )
    with TrainingLock(tmp_path / "models"):
        done = forked.run([script], tmp_path)
        assert done.returncode != 0
        assert f"is being trained by process {os.getpid()} on" in done.told
    assert forked.run([script], tmp_path).told == "trained\n"
    assert not (tmp_path / "models").exists()  # it was made for the lock alone


def test_lock_of_a_process_that_was_killed_is_taken_over_with_a_word(
    tmp_path: Path, other: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    held_by(tmp_path, other.pid)
    other.kill()
    other.wait()
    with caplog.at_level(logging.WARNING), TrainingLock(tmp_path):
        assert f"process {other.pid}" in caplog.text
        assert "taken over" in caplog.text
    assert not (tmp_path / LOCK).exists()


@linux
def test_lock_of_a_zombie_or_of_a_number_used_again_is_taken_over(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    held_by(tmp_path, other.pid, start="1")  # another process had that number
    with TrainingLock(tmp_path):
        pass
    held_by(tmp_path, other.pid)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has asked for it
    with TrainingLock(tmp_path):
        pass


@pytest.mark.parametrize(
    "changed", [{"host": "elsewhere"}, {"pid_namespace": "pid:[7]"}, {"host": None}]
)
def test_lock_of_another_host_or_container_stays_until_it_is_deleted(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    held_by(tmp_path, 2**22 + 1, **changed)  # no process here
    with pytest.raises(FolderError, match=r"If it no longer runs, delete .*\.training\.lock"):
        TrainingLock(tmp_path).acquire()
    (tmp_path / LOCK).unlink()
    with TrainingLock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_lock_that_cannot_be_read_is_not_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(FolderError, match="delete"):
        TrainingLock(tmp_path).acquire()


def test_same_thread_may_take_it_again_and_another_thread_may_not(tmp_path: Path) -> None:
    refused: list[Exception] = []

    def train() -> None:
        try:
            TrainingLock(tmp_path).acquire()
        except FolderError as error:
            refused.append(error)

    with TrainingLock(tmp_path):
        with TrainingLock(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()  # the outer one still holds it
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_is_forgotten_goes_with_its_object(tmp_path: Path) -> None:
    held = TrainingLock(tmp_path)
    held.acquire()
    del held
    assert not (tmp_path / LOCK).exists()


def test_fork_of_the_holder_does_not_release_it(tmp_path: Path) -> None:
    with TrainingLock(tmp_path) as held:
        me = json.loads((tmp_path / LOCK).read_text())
        lock._remove(held.path, {**me, "pid": me["pid"] + 1}, [])
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_vanished_or_was_replaced_is_an_error(tmp_path: Path, again: bool) -> None:
    folder = tmp_path / "models"
    held = TrainingLock(folder)
    held.acquire()
    held.require()
    shutil.rmtree(folder)
    if again:  # as the place of a disk that is no longer there
        folder.mkdir()
    with pytest.raises(FolderError, match="its disk is gone"):
        held.require()
    with pytest.raises(FolderError, match="its disk is gone"):
        held.release()


def test_the_error_of_a_training_is_not_covered_by_that_of_its_folder(tmp_path: Path) -> None:
    def train() -> None:
        with TrainingLock(tmp_path / "models"):
            shutil.rmtree(tmp_path / "models")
            raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        train()
