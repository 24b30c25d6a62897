"""How far a watcher has come, and what became of each series: files that a kill leaves whole.

The record of a series is written before the position: what lies between them is looked at again,
and its record says that it has ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mcmiad_monai.files.writing import replace_atomically, write_text

POSITION, LOCK, RECORDS = "position.json", "lock", "records"
#: What a record says: computing; results written and not all sent; ended.
BEGUN, WRITTEN = "begun", "written"


class PositionError(ValueError):
    """The folder of a watcher cannot be used."""


@dataclass(frozen=True)
class Place:
    """A place in the changes of an archive.

    Attributes
    ----------
    since : int
        Number of the last change that was looked at.
    unsettled : tuple of str
        Series that have begun to come, and have not been told stable.
    """

    since: int = 0
    unsettled: tuple[str, ...] = ()


@dataclass
class Position:
    """The file of the place, and how many series have ended.

    Parameters
    ----------
    folder : Path
    url : str
        Of the archive.

    Raises
    ------
    PositionError
        If the folder is of another archive, or its file is damaged.
    """

    folder: Path
    url: str
    place: Place = field(default_factory=Place)
    counts: dict[str, int] = field(default_factory=lambda: {"done": 0, "refused": 0, "failed": 0})
    is_new: bool = True

    def __post_init__(self) -> None:
        path = self.folder / POSITION
        if not path.exists():
            return
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            place = told["place"]
            self.place = Place(int(place["since"]), tuple(map(str, place["unsettled"])))
            self.counts |= {key: int(told["counts"][key]) for key in self.counts}
            url = told["url"]
        except (ValueError, KeyError, TypeError) as error:
            raise PositionError(
                f"{path} is damaged ({error}). Remove it to look at all series again; those that "
                "have ended are not analysed twice."
            ) from error
        if url != self.url:
            raise PositionError(
                f"{self.folder} belongs to the archive {url}; name another folder by --out for "
                f"{self.url}."
            )
        self.is_new = False

    @property
    def total(self) -> int:
        """How many series have ended."""
        return sum(self.counts.values())

    def save(self, place: Place) -> None:
        """Go on to a place."""
        self.place = place
        content = {"url": self.url, "place": asdict(place), "counts": self.counts}
        write_text(self.folder / POSITION, json.dumps(content, indent=1) + "\n")


class Records:
    """One small file a series: what became of it. None is in memory.

    Parameters
    ----------
    folder : Path
        Of the watcher.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / RECORDS

    def path_of(self, name: str) -> Path:
        """File of a series, which Orthanc names by hexadecimal digits."""
        return self._folder / name[:2] / f"{name}.json"

    def read(self, name: str) -> dict[str, Any]:
        """What became of a series; empty where nothing is known."""
        try:
            told = json.loads(self.path_of(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Replace what is known of a series."""
        text = json.dumps(record, indent=1) + "\n"
        replace_atomically(
            self.path_of(name), lambda partial: partial.write_text(text, encoding="utf-8")
        )


@contextmanager
def only_watcher(folder: Path) -> Iterator[None]:
    """Be the one watcher of a folder, which is made, for its owner alone.

    Raises
    ------
    PositionError
        If another one is at work.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PositionError(
                f"another watcher is at work in {folder}; stop it, or name another folder by --out."
            ) from error
        yield
    finally:
        os.close(handle)
