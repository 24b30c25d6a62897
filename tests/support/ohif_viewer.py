"""OHIF on loopback before an archive: its built files and the archive under one address."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: Folder of the viewer: `package` of npm's @ohif/app, which .ci/install-ohif downloads.
FOLDER = Path(os.environ.get("OHIF_APP", Path(__file__).parents[2] / ".ohif"))

CONFIGURATION = """window.config = {
  routerBasename: '/', showStudyList: true, extensions: [], modes: [],
  investigationalUseDialog: { option: 'never' }, maxNumberOfWebWorkers: 2,
  showCPUFallbackMessage: false, defaultDataSourceName: 'archive',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'archive',
    configuration: {
      friendlyName: 'archive', name: 'archive', wadoUriRoot: '/dicom-web',
      qidoRoot: '/dicom-web', wadoRoot: '/dicom-web', imageRendering: 'wadors',
      thumbnailRendering: 'wadors', enableStudyLazyLoad: true, supportsWildcard: true,
      omitQuotationForMultipartRequest: true, bulkDataURI: { enabled: true },
    },
  }],
};"""


def missing_ohif() -> str | None:
    """Why there is no OHIF to open, if so."""
    if (FOLDER / "dist" / "index.html").exists():
        return None
    return "OHIF is not there; .ci/install-ohif downloads it"


@contextmanager
def ohif(archive: str) -> Iterator[str]:
    """Address of an OHIF that shows the studies of an Orthanc at a URL."""

    class Handler(_Handler):
        url = archive

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    url: str

    def __init__(self, *options: Any) -> None:
        super().__init__(*options, directory=str(FOLDER / "dist"))

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/dicom-web"):
            self._pass_on()
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", CONFIGURATION.encode())
        else:
            if not (FOLDER / "dist" / path.lstrip("/")).is_file():
                self.path = "/index.html"  # the viewer's own addresses
            super().do_GET()

    def _pass_on(self) -> None:
        import requests

        accept = self.headers.get("Accept", "*/*")
        got = requests.get(self.url + self.path, headers={"Accept": accept}, timeout=60)
        kind = got.headers.get("Content-Type", "application/octet-stream")
        self._answer(got.status_code, kind, got.content)

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(ConnectionError):  # the browser has gone to another page
            self.wfile.write(content)

    def end_headers(self) -> None:
        # memory that workers share is for pages of their own origin alone
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *_: Any) -> None:
        pass
