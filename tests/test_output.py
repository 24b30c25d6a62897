"""The output folder: tried before anything is computed, and told in words where it is full."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcmiad_monai.data.feature_store import FeatureWriter
from mcmiad_monai.files import leftovers, room
from mcmiad_monai.files.leftovers import partial_path
from mcmiad_monai.files.room import DiskFullError, OutputError, prepare_output
from mcmiad_monai.files.writing import replace_atomically, replace_together, save_torch, write_text


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A system in which no file may grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def write_bytes(path: Path, size: int) -> None:
    replace_atomically(path, lambda partial: partial.write_bytes(bytes(size)))


def save_tensor(path: Path, size: int) -> None:
    save_torch({"weights": torch.zeros(size // 4)}, path)


WRITERS = pytest.mark.parametrize("write", [write_bytes, save_tensor])


@WRITERS
def test_a_full_disk_is_told_with_the_path_and_the_old_file_stays(
    small_disk: Path, write: Any
) -> None:
    write(small_disk / "a.pt", 50_000)
    before = (small_disk / "a.pt").read_bytes()
    with pytest.raises(DiskFullError, match=rf"no room for {small_disk}/a\.pt .* MB free"):
        write(small_disk / "a.pt", 1_000_000)
    assert (small_disk / "a.pt").read_bytes() == before
    assert names(small_disk) == ["a.pt"]
    (small_disk / "rest").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OutputError, match="has no room left"):
        prepare_output(small_disk)


@WRITERS
def test_a_limit_of_file_sizes_is_told_too(tmp_path: Path, write: Any) -> None:
    with largest_file(20_000), pytest.raises(DiskFullError, match=r"no room for .*a\.pt"):
        write(tmp_path / "a.pt", 100_000)
    assert names(tmp_path) == []


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def fail(_partial: Path) -> None:
        raise PermissionError(13, "no")

    with pytest.raises(PermissionError):
        replace_atomically(tmp_path / "a", fail)


def test_of_files_that_belong_together_none_is_replaced_if_one_cannot_be_written(
    tmp_path: Path,
) -> None:
    one, last = tmp_path / "heatmap", tmp_path / "scores"
    replace_together({one: lambda p: p.write_text("1"), last: lambda p: p.write_text("1")})

    def full(partial: Path) -> None:
        partial.write_text("2")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError):
        replace_together({one: lambda p: p.write_text("2"), last: full})
    assert (one.read_text(), last.read_text()) == ("1", "1")
    assert names(tmp_path) == ["heatmap", "scores"]


def test_the_last_of_files_that_belong_together_never_stands_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, last = tmp_path / "heatmap", tmp_path / "scores"
    replace_together({one: lambda p: p.write_text("1"), last: lambda p: p.write_text("1")})
    replace, seen = Path.replace, []

    def look(partial: Path, target: Path) -> Any:
        seen.append((target.name, last.exists()))
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", look)
    replace_together({one: lambda p: p.write_text("2"), last: lambda p: p.write_text("2")})
    assert seen == [("heatmap", False), ("scores", False)]


def test_a_folder_that_can_be_made_is_fine_and_nothing_stays_of_the_trial(tmp_path: Path) -> None:
    prepare_output(tmp_path / "a" / "b")
    assert names(tmp_path) == []


@pytest.mark.parametrize("where", ["file", "file/below", "link", "/proc/no", "x" * 300])
def test_an_output_that_is_no_folder_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = names(tmp_path)
    with pytest.raises(OutputError, match=r"cannot be used \(.+\); a folder is needed"):
        prepare_output(tmp_path / where)
    assert names(tmp_path) == before


def test_a_disk_that_is_read_only_is_refused(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="Read-only file system"):
        prepare_output(small_disk)


def test_too_little_room_is_refused_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    prepare_output(tmp_path, room=2_000_000)
    with pytest.raises(OutputError, match=r"2\.0 MB free, and about 3\.5 GB will be written"):
        prepare_output(tmp_path, room=3_500_000_000)


def killed_while_writing(target: Path) -> None:
    """A process that is killed in the middle of a file, and of a folder of features."""
    child = os.fork()
    if child == 0:
        try:
            FeatureWriter((1, 1, 1), 8, target.parent / "features" / "ab")
            replace_atomically(target, lambda partial: (partial.touch(), os.kill(os.getpid(), 9)))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_what_a_killed_run_was_writing_goes_at_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_text(tmp_path / "s" / "a.txt", "whole")
    killed_while_writing(tmp_path / "s" / "a.txt")
    assert len([n for n in names(tmp_path) if ".mcmiad-" in n]) == 2
    with caplog.at_level(logging.INFO, "mcmiad_monai"):
        prepare_output(tmp_path, levels=2)
    assert names(tmp_path) == ["s", "s/a.txt", "s/features"]
    assert "removed 2 unfinished files" in caplog.text


def test_what_a_living_process_writes_stays_and_so_do_files_of_others(tmp_path: Path) -> None:
    mine = partial_path(tmp_path / "mine.txt")
    others = [tmp_path / ".hidden", tmp_path / ".12345678.a.txt", tmp_path / ".mcmiad-notes"]
    for path in (mine, *others):
        path.touch()
        os.utime(path, (0, 0))
    prepare_output(tmp_path)
    assert names(tmp_path) == sorted(path.name for path in (mine, *others))


def test_what_another_machine_writes_stays_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "_place", lambda: "00000000")
        new, old = partial_path(tmp_path / "new.txt"), partial_path(tmp_path / "old.txt")
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    prepare_output(tmp_path)
    assert names(tmp_path) == [new.name]


def test_the_longest_name_of_a_file_has_room_for_its_partial_one(tmp_path: Path) -> None:
    write_text(tmp_path / ("ä" * 120 + ".nii.gz"), "whole")
    assert len(names(tmp_path)) == 1
