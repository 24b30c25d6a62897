"""Results to an archive by C-STORE, all in one association."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.answers import Answer
from mcmiad_monai.dicom.credentials import AddressError
from mcmiad_monai.dicom.refusals import may_pass, meaning

#: Variable of the environment with our own title, which many archives have to know; its default.
AE_TITLE, OUR_TITLE = "MCMIAD_AE_TITLE", "MCMIAD"
ADDRESS = re.compile(
    r"(?P<title>[^@\\\x00-\x1f]{1,16})@(?P<host>\[[0-9a-fA-F:]+\]|[^@:/\s]+):(?P<port>\d+)"
)
#: SOP class and transfer syntax of a file.
Kind = tuple[str, str]
#: A rejection that may pass, and the codes of instances that were stored with a warning.
TRANSIENT, WARNINGS = 2, 0xB000
#: Seconds: to connect; to agree on an association; for the answer to one instance.
CONNECT, AGREE, ANSWER = 10.0, 30.0, 300.0


class CStoreSender:
    """A `Sender` to ``AET@host:port``.

    Parameters
    ----------
    target : str
        Title, host and port of the archive; an IPv6 address stands in brackets.

    Raises
    ------
    AddressError
        If it is no such address.
    """

    def __init__(self, target: str) -> None:
        found = ADDRESS.fullmatch(target)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise AddressError(
                f"{target!r} is no address to send to; https://host/dicom-web (STOW-RS) or "
                "AET@host:port (C-STORE) is needed, with at most 16 letters of AET."
            )
        self.target = target
        self._title, self._port = found["title"], int(found["port"])
        self._host = found["host"].strip("[]")

    def store(self, files: Sequence[Path]) -> Iterator[Answer]:
        """An answer to each file; contexts of exactly their classes and transfer syntaxes."""
        kinds = [_kind_of(file) for file in files]
        association = self._associate(sorted(set(kinds)))
        try:
            for file, kind in zip(files, kinds, strict=True):
                yield self._refusal(association, kind) or self._one(association, file)
        finally:
            if association.is_established:
                association.release()

    def _associate(self, kinds: list[Kind]) -> Any:
        from pynetdicom import AE
        from pynetdicom.presentation import build_context

        entity = AE(ae_title=os.environ.get(AE_TITLE) or OUR_TITLE)
        entity.connection_timeout, entity.acse_timeout = CONNECT, AGREE
        entity.dimse_timeout = entity.network_timeout = ANSWER
        # a context each: of several syntaxes in one, an archive takes one that a file may not have
        contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in kinds]
        return entity.associate(self._host, self._port, contexts, ae_title=self._title)

    def _refusal(self, association: Any, kind: Kind) -> Answer | None:
        """Why a file of a kind cannot be sent at all, if so."""
        from pydicom.uid import UID

        if association.is_rejected:
            told = association.acceptor.primitive
            why = f"{self.target} rejected the association: {told.reason_str}"
            ours = f"we are {association.requestor.ae_title}, see {AE_TITLE}"
            return Answer(False, f"{why} ({ours})", again=told.result == TRANSIENT, lost=True)
        # where it takes none at all, the association is over as well
        if kind in {
            (c.abstract_syntax, c.transfer_syntax[0]) for c in association.rejected_contexts
        }:
            return Answer(False, f"{self.target} takes no {' as '.join(UID(u).name for u in kind)}")
        if not association.is_established:
            return Answer(False, f"{self.target} was not reached", again=True, lost=True)
        return None

    def _one(self, association: Any, file: Path) -> Answer:
        status = association.send_c_store(file)
        if "Status" not in status:
            return Answer(False, f"{self.target} did not answer", again=True, lost=True)
        code = int(status.Status)
        if code == 0:
            return Answer(True)
        if code & 0xF000 == WARNINGS:
            return Answer(True, f"the archive warns: {meaning(code)}")
        return Answer(False, f"the archive refused it: {meaning(code)}", may_pass(code))


def _kind_of(file: Path) -> Kind:
    """SOP class and transfer syntax of a file."""
    import pydicom

    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return str(header.SOPClassUID), str(header.file_meta.TransferSyntaxUID)
