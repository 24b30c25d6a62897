"""A file is the old one or the new one, whatever happens in between."""

from __future__ import annotations

import csv
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mcmiad_monai.files.writing import replace_atomically, save_torch, write_csv, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("written", ["half of it", ""])
@pytest.mark.parametrize("error", [OSError("full"), ValueError("no"), KeyboardInterrupt(), None])
def test_writer_that_fails_or_writes_nothing_leaves_the_old_file(
    tmp_path: Path, error: BaseException | None, written: str
) -> None:
    def write(partial: Path) -> None:
        if written and error:
            partial.write_text(written)
        if error:
            raise error

    (tmp_path / "scores.json").write_text("old")
    with pytest.raises(type(error) if error else FileNotFoundError):
        replace_atomically(tmp_path / "scores.json", write)
    assert (tmp_path / "scores.json").read_text() == "old"
    assert names(tmp_path) == ["scores.json"]


def test_old_file_stands_until_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    seen: list[str] = []

    def write(partial: Path) -> None:
        partial.write_text("ne")
        seen.append(target.read_text())
        partial.write_text("new")

    replace_atomically(target, write)
    assert seen == ["old"]
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_partial_file_is_hidden_beside_the_target_with_its_suffixes(tmp_path: Path) -> None:
    given: list[Path] = []

    def write(partial: Path) -> None:
        given.append(partial)
        partial.touch()

    replace_atomically(tmp_path / "p" / "heat.nii.gz", write)
    (partial,) = given
    assert partial.parent == tmp_path / "p"  # a rename is atomic within a file system only
    assert partial.name.startswith(".")
    assert partial.name.endswith("heat.nii.gz")


def test_text_is_utf8_and_its_folder_is_made(tmp_path: Path) -> None:
    write_text(str(tmp_path / "a" / "b.txt"), "λ · 5 °C – é")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "λ · 5 °C – é".encode()


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    target, versions = tmp_path / "a.txt", ["a" * 200_000, "b" * 200_000]
    write_text(target, versions[0])
    done = threading.Event()

    def write_many() -> None:
        for k in range(60):
            write_text(target, versions[k % 2])
        done.set()

    writer = threading.Thread(target=write_many)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(target.read_text())
    writer.join()
    assert seen <= set(versions)


def test_writers_of_one_target_do_not_meet(tmp_path: Path) -> None:
    target, failed = tmp_path / "a.txt", []

    def write(letter: str) -> None:
        try:
            for _ in range(20):
                write_text(target, letter * 50_000)
        except OSError as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == []
    assert len(set(target.read_text())) == 1
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def die(partial: Path) -> None:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            replace_atomically(target, die)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert target.read_text() == "old"
    assert [n for n in names(tmp_path) if not n.startswith(".")] == ["a.txt"]


def test_checkpoint_that_cannot_be_pickled_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_torch({"epoch": 1}, path)
    unpicklable: Any = {"weights": torch.zeros(10_000), "hook": lambda x: x}
    with pytest.raises(Exception, match=r"[Pp]ickle"):
        save_torch(unpicklable, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert names(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_texts_of_a_csv_are_no_formulas_and_numbers_stay_numbers(
    tmp_path: Path, start: str
) -> None:
    text = f"{start}HYPERLINK(1)"
    row = {"case": text, "score": -1.5, "text": "-1.5", "none": None, "plain": "a=b"}
    write_csv(tmp_path / "t.csv", [row])
    with (tmp_path / "t.csv").open(newline="") as file:
        (found,) = csv.DictReader(file)
    assert found == {
        "case": f"'{text}",
        "score": "-1.5",
        "text": "-1.5",
        "none": "",
        "plain": "a=b",
    }
