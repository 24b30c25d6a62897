"""Orthanc's REST interface: what has changed, the files of a series, and a way in for results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.answers import Answer
from mcmiad_monai.dicom.credentials import checked_url, open_session
from mcmiad_monai.dicom.series import why_no_study
from mcmiad_monai.files.room import room_for

#: Seconds to connect, and between two pieces of an answer.
TIMEOUTS = (10.0, 120.0)
#: Changes in one answer.
PAGE = 200
#: Bytes of a file that are in memory at a time.
PIECE = 1 << 20
#: What Orthanc calls a resource.
IDENTIFIER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")


class ArchiveLostError(OSError):
    """Orthanc was not reached, or let nobody in; it may be there later."""


class GoneError(LookupError):
    """What was asked for is not there, or no longer."""


@dataclass(frozen=True)
class ArchivedSeries:
    """A series as Orthanc tells it.

    Attributes
    ----------
    id : str
        Orthanc's name for it.
    uid, modality : str
        Of its headers.
    instances : tuple of str
        Orthanc's names of its instances, sorted.
    stable : bool
        Whether nothing has come for a while (Orthanc's ``StableAge``).
    passed_over : str
        Why it is no study, if so.
    """

    id: str
    uid: str
    modality: str
    instances: tuple[str, ...]
    stable: bool
    passed_over: str

    @property
    def fingerprint(self) -> str:
        """Digest of which instances it has: another one is another series to look at."""
        return sha256("\n".join(self.instances).encode()).hexdigest()


class Orthanc:
    """A client of one Orthanc; a `Sender` too.

    Parameters
    ----------
    url : str
        Of its REST interface, as ``http://127.0.0.1:8042``.
    """

    def __init__(self, url: str) -> None:
        self.url = self.target = checked_url(url)
        self._session = open_session(self.url)

    def check(self) -> None:
        """Ask whether it is there.

        Raises
        ------
        ArchiveLostError
            If not.
        ValueError
            If what answers is no Orthanc.
        """
        told = self._json("/system")
        if not isinstance(told, dict) or "ApiVersion" not in told:
            raise ValueError(f"{self.url} answers and is no Orthanc; name its address.")

    def last_change(self) -> int:
        """Number of its newest change."""
        return int(self._json("/changes?last")["Last"])

    def changes(self, since: int) -> tuple[list[dict[str, Any]], bool]:
        """Changes after a number, at most `PAGE`, and whether these are the last ones."""
        told = self._json(f"/changes?since={since}&limit={PAGE}")
        return list(told["Changes"]), bool(told["Done"])

    def series(self, name: str) -> ArchivedSeries:
        """What it knows of a series.

        Raises
        ------
        GoneError
            If it has none of this name.
        """
        told = self._json(f"/series/{_checked(name)}")
        tags = told.get("MainDicomTags", {})
        modality = str(tags.get("Modality", ""))
        return ArchivedSeries(
            id=name,
            uid=str(tags.get("SeriesInstanceUID", "")),
            modality=modality,
            instances=tuple(sorted(map(str, told["Instances"]))),
            stable=bool(told.get("IsStable", True)),
            passed_over=why_no_study(
                modality, tags.get("SeriesDescription"), tags.get("Manufacturer")
            ),
        )

    def fetch(self, series: ArchivedSeries, folder: Path) -> None:
        """Write the files of a series into a new folder, one after the other."""
        import requests

        folder.mkdir(parents=True)
        for number, instance in enumerate(series.instances, 1):
            path = folder / f"{number:06d}.dcm"
            answer = self._get(f"/instances/{_checked(instance)}/file", stream=True)
            try:
                with answer, room_for(path), path.open("wb") as file:
                    for piece in answer.iter_content(PIECE):
                        file.write(piece)
            except requests.RequestException as error:
                raise ArchiveLostError(f"{self.url} broke off its answer") from error

    def store(self, files: Sequence[Path]) -> Iterator[Answer]:
        """Send files; an answer to each."""
        for file in files:
            yield self._store(file)

    def _store(self, file: Path) -> Answer:
        import requests

        try:
            with file.open("rb") as content:
                answer = self._session.post(f"{self.url}/instances", data=content, timeout=TIMEOUTS)
        except (requests.ConnectionError, requests.Timeout) as error:
            why = f"{self.url} was not reached ({type(error).__name__})"
            return Answer(False, why, again=True, lost=True)
        if answer.ok:
            status = answer.json().get("Status")
            stored = status in ("Success", "AlreadyStored")
            return Answer(stored, "" if stored else f"Orthanc answered {status}")
        why = f"Orthanc answered {answer.status_code} {answer.reason}"
        lost = answer.status_code >= 500 or answer.status_code in (401, 403)
        return Answer(False, why, again=lost, lost=lost)

    def _get(self, path: str, **options: Any) -> Any:
        import requests

        try:
            answer = self._session.get(f"{self.url}{path}", timeout=TIMEOUTS, **options)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise ArchiveLostError(
                f"{self.url} was not reached ({type(error).__name__})"
            ) from error
        if answer.status_code == 404:
            raise GoneError(f"{self.url} has no {path}")
        if not answer.ok:
            told = f"{self.url} answered {answer.status_code} {answer.reason}"
            raise ArchiveLostError(told)
        return answer

    def _json(self, path: str) -> Any:
        try:
            return self._get(path).json()
        except ValueError as error:
            raise ArchiveLostError(f"{self.url} answered with what is no JSON") from error


def _checked(name: str) -> str:
    """Orthanc's name of a resource, which goes into paths."""
    if not IDENTIFIER.fullmatch(name):
        raise GoneError(f"{name!r} is no name of Orthanc's")
    return name
