"""Results to an archive: each file once, tried again, and what was not taken is told.

Writing and sending are apart: a file that could not be sent stays, and is sent by the next run.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.answers import Sender
from mcmiad_monai.errors import escaped
from mcmiad_monai.files.reading import file_sha256

logger = logging.getLogger(__name__)

#: Name of the ledger, in the folder of the results.
LEDGER = "sent.jsonl"
#: Tries of a file, and seconds before the second one; the pause doubles each time.
ATTEMPTS, PAUSE = 4, 1.0


@dataclass
class Sent:
    """What became of files.

    Attributes
    ----------
    target : str
        The archive.
    stored : list of Path
        Accepted now.
    before : list of Path
        Accepted by an earlier run, as they are.
    warnings : dict of Path to str
        What the archive changed or complained of in files that it stored.
    unsent : dict of Path to str
        Files that it did not take, and why.
    lost : bool
        Whether one of these is unsent because the archive was not reached.
    """

    target: str
    stored: list[Path] = field(default_factory=list)
    before: list[Path] = field(default_factory=list)
    warnings: dict[Path, str] = field(default_factory=dict)
    unsent: dict[Path, str] = field(default_factory=dict)
    lost: bool = False

    def message(self, folder: Path) -> str:
        """What was not sent, and how to send it again; `folder` has the ledger."""
        total = len(self.stored) + len(self.before) + len(self.unsent)
        reasons = "".join(f"\n  {file}: {escaped(why)}" for file, why in self.unsent.items())
        return (
            f"{len(self.unsent)} of {total} files were written and not sent to {self.target}:"
            f"{reasons}\nSend them again with: mcmiad send {shlex.quote(str(folder))} "
            f"--to {shlex.quote(self.target)}"
        )


class SendLedger:
    """Which files an archive has accepted, by SOP Instance UID: one line a file, in a file.

    A file of the same UID and other content is sent again, to replace the first. What a killed run
    left of a line is passed over.

    Parameters
    ----------
    path : path
        Its file; made with the first line.
    target : str
        The archive.
    """

    def __init__(self, path: Path, target: str) -> None:
        self.path, self.target = path, target
        self._accepted: dict[str, str] = {}
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if entry["target"] == self.target:
                self._accepted[entry["instance"]] = entry["sha256"]
        except (ValueError, KeyError, TypeError):  # torn
            pass

    def has(self, instance: str, digest: str) -> bool:
        """Whether the archive accepted an instance with this content last."""
        return self._accepted.get(instance) == digest

    def add(self, instance: str, digest: str, warning: str = "") -> None:
        """Write down that the archive has accepted an instance."""
        entry = {"target": self.target, "instance": instance, "sha256": digest, "time": time.time()}
        line = json.dumps(entry | ({"warning": warning} if warning else {})) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:  # one write: lines of two processes do not mix
            end = os.lseek(handle, 0, os.SEEK_END)
            torn = end > 0 and os.pread(handle, 1, end - 1) != b"\n"
            os.write(handle, (b"\n" if torn else b"") + line.encode())
        finally:
            os.close(handle)
        self._accepted[instance] = digest


def send(
    files: Sequence[Path],
    sender: Sender,
    ledger: SendLedger,
    *,
    attempts: int = ATTEMPTS,
    pause: float = PAUSE,
) -> Sent:
    """Send DICOM files that an archive has not accepted yet.

    Parameters
    ----------
    files : sequence of Path
    sender : Sender
        See `sender_to`.
    ledger : SendLedger
        Of the sender's target.
    attempts : int
        Tries of each file, where another one may help.
    pause : float
        Seconds before the second try; doubled before each further one.

    Returns
    -------
    Sent
        With what was not sent, and why; nothing is raised for a file.
    """
    sent = Sent(sender.target)
    waiting: list[Path] = []
    identities: dict[Path, tuple[str, str]] = {}
    for file in files:
        try:
            identities[file] = (instance_of(file), file_sha256(file))
        except (OSError, ValueError) as error:
            sent.unsent[file] = str(error)
            continue
        if ledger.has(*identities[file]):
            sent.before.append(file)
        else:
            waiting.append(file)
    for attempt in range(attempts):
        if not waiting:
            break
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        told = zip(waiting, sender.store(waiting), strict=True)
        waiting, sent.lost = [], False
        for file, answer in told:
            if answer.stored:
                ledger.add(*identities[file], answer.told)
                sent.stored.append(file)
                sent.unsent.pop(file, None)
                if answer.told:
                    sent.warnings[file] = answer.told
                    logger.warning("%s is stored: %s", file.name, answer.told)
                continue
            sent.unsent[file], sent.lost = answer.told, sent.lost or answer.lost
            if answer.again:
                waiting.append(file)
    return sent


def send_to(target: str, files: Sequence[Path], folder: Path, **how: Any) -> Sent:
    """Send files to the archive of an address; its ledger is in `folder`. See `send`."""
    sender = sender_to(target)
    return send(files, sender, SendLedger(folder / LEDGER, sender.target), **how)


def sender_to(target: str) -> Sender:
    """What sends to ``http(s)://…`` by STOW-RS, or to ``AET@host:port`` by C-STORE.

    Raises
    ------
    AddressError
        If the address is neither.
    """
    if "://" in target:
        from mcmiad_monai.dicom.stow import StowSender

        return StowSender(target)
    from mcmiad_monai.dicom.cstore import CStoreSender

    return CStoreSender(target)


def instance_of(file: Path) -> str:
    """SOP Instance UID of a DICOM file.

    Raises
    ------
    ValueError
        If it is no DICOM file, or lacks what sending needs: UIDs of instance, class and syntax.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"]
        )
        uids = (header.SOPInstanceUID, header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    except (InvalidDicomError, AttributeError) as error:
        raise ValueError(f"{file} is no DICOM file with UIDs of instance and class.") from error
    return str(uids[0])
