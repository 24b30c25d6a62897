"""What an archive says to the files that it is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """What an archive said to one file.

    Attributes
    ----------
    stored : bool
    told : str
        The archive's warning, of a file that it stored; else the reason why not.
    again : bool
        Whether another try may help.
    lost : bool
        Whether the archive was not reached, or let nobody in: the file is not the reason.
    """

    stored: bool
    told: str = ""
    again: bool = False
    lost: bool = False


class Sender(Protocol):
    """A way into one archive."""

    target: str

    def store(self, files: Sequence[Path]) -> Iterator[Answer]:
        """Send DICOM files; an answer to each, in their order."""
