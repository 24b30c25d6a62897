"""DICOM files to send, and a receiver of C-STORE in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def write_object(path: Path, uid: str | None = None, text: str = "a", **more: Any) -> Path:
    """A small Secondary Capture; `text` makes its content another one."""
    ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    ds.file_meta.TransferSyntaxUID = more.pop("syntax", ExplicitVRLittleEndian)
    ds.SOPClassUID = more.pop("sop_class", SecondaryCaptureImageStorage)
    ds.SOPInstanceUID = uid or generate_uid()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    ds.PatientID, ds.PatientName, ds.Modality = "P1", "Secret^Name", "OT"
    ds.SeriesDescription, ds.InstanceNumber = text, 1
    ds.Rows = ds.Columns = 8
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes(64)
    for name, value in more.items():
        setattr(ds, name, value)
    pydicom.dcmwrite(path, ds)
    return path


class Received:
    """What a receiver got, and how it answers: a code for each instance, 0 for stored."""

    def __init__(self) -> None:
        self.instances: list[str] = []
        self.codes: dict[str, list[int]] = {}
        self.contexts: set[tuple[str, str]] = set()
        self.calling: list[str] = []
        self.port = 0

    def answer(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.contexts.add((str(event.context.abstract_syntax), str(event.context.transfer_syntax)))
        self.calling.append(str(event.assoc.requestor.ae_title))
        codes = self.codes.get(uid, [])
        code = codes.pop(0) if codes else 0
        if code == 0 or code & 0xF000 == 0xB000:
            self.instances.append(uid)
        return code


@contextmanager
def receiver(**options: Any) -> Iterator[Received]:
    """A receiver that takes every storage class, uncompressed."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    got, entity = Received(), AE(ae_title="PACS")
    entity.supported_contexts = options.pop("contexts", AllStoragePresentationContexts)
    for name, value in options.items():
        setattr(entity, name, value)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, got.answer)]
    )
    got.port = server.socket.getsockname()[1]
    try:
        yield got
    finally:
        server.shutdown()
