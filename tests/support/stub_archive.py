"""A DICOMweb archive of one's own: pages of results, instances, and the faults of real ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TYPE = 'multipart/related; type="application/dicom"; boundary=B'


def series(uid: str, modality: str = "MR", **more: str) -> dict[str, Any]:
    """A result of QIDO-RS."""
    values = {
        "0020000D": "1.2.3",
        "0020000E": uid,
        "00080060": modality,
        "0008103E": more.get("description", ""),
        "00100020": more.get("patient", ""),
    }
    return {key: {"vr": "UI", "Value": [value]} for key, value in values.items() if value}


class StubArchive:
    """What it holds, how it fails, and what it was asked.

    Attributes
    ----------
    series : list of dict
        Results of QIDO-RS.
    files : dict of str to Path
        SOP Instance UID → file, of every series.
    cap : int
        Most results in one answer.
    faults : list
        What happens to the next requests: a status, "cut", "slow", or None for none.
    offsets : bool
        Whether it knows the parameter ``offset``.
    asked : list of (str, dict)
        Path and parameters of each request, and its ``Authorization``.
    """

    def __init__(self, found: Sequence[dict[str, Any]] = (), cap: int = 1000) -> None:
        self.series, self.cap, self.offsets = list(found), cap, True
        self.files: dict[str, Path] = {}
        self.faults: list[Any] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def page(self, found: Sequence[dict[str, Any]], asked: Mapping[str, str]) -> bytes:
        """The results that were asked for, as JSON."""
        start = int(asked.get("offset", 0)) if self.offsets else 0
        count = min(self.cap, int(asked.get("limit", self.cap)))
        return json.dumps(found[start : start + count]).encode()

    def answer(self, path: str, asked: Mapping[str, str]) -> tuple[str, bytes]:
        """Type and content of an answer."""
        if path.endswith("/instances"):
            listed = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in self.files]
            return "application/dicom+json", self.page(listed, asked)
        if path.endswith("/series"):
            return "application/dicom+json", self.page(self.series, asked)
        content = self.files[path.rpartition("/")[2]].read_bytes()
        head = b"--B\r\nContent-Type: application/dicom\r\n\r\n"
        return TYPE, head + content + b"\r\n--B--"


@contextmanager
def running(archive: StubArchive) -> Iterator[str]:
    """Serve an archive on loopback; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = dict(parse_qsl(parts.query))
            authorization = {"Authorization": self.headers.get("Authorization", "")}
            archive.asked.append((parts.path, asked | authorization))
            fault = archive.faults.pop(0) if archive.faults else None
            if isinstance(fault, int):
                self.send_response(fault)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "slow":
                time.sleep(1.0)
            kind, content = archive.answer(parts.path, asked)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
            if fault == "cut":
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Nothing on the console of the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    archive.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    try:
        yield archive.url
    finally:
        server.shutdown()
        server.server_close()
