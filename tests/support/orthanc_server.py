"""An Orthanc on this machine that can be stopped, killed and started again over its storage."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/lib/orthanc")
START_SECONDS = 60


def missing_orthanc() -> str | None:
    """Why there is no Orthanc to start, if so."""
    if _program() is None:
        return "Orthanc is not installed; .ci/install-orthanc installs it"
    return None if _plugin() else "Orthanc's DICOMweb plugin is not installed"


def _program() -> str | None:
    return shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _plugin() -> Path | None:
    found = (p for folder in PLUGINS for p in Path(folder).glob("libOrthancDicomWeb.so*"))
    return next(found, None)


class OrthancServer:
    """Started and stopped by `with`; `url` stays the same.

    Parameters
    ----------
    folder : Path
        Of its storage.
    **more
        Of its configuration.
    """

    def __init__(self, folder: Path, **more: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        configuration = {
            "Name": "tests",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": False,
            "StableAge": 1,
            "Plugins": [str(_plugin())],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False, "Ssl": False},
        }
        (folder / "orthanc.json").write_text(json.dumps(configuration | more))

    def __enter__(self) -> OrthancServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import requests

        with (self.folder / "orthanc.log").open("ab") as log:
            command = [str(_program()), str(self.folder / "orthanc.json")]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            try:
                if requests.get(f"{self.url}/system", timeout=5).status_code == 200:
                    return
            except requests.ConnectionError:
                time.sleep(0.1)
        raise RuntimeError((self.folder / "orthanc.log").read_text(errors="replace")[-3000:])

    def stop(self) -> None:
        """Stop it; what it stored stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
            self._process = None

    def get(self, path: str) -> Any:
        """The JSON at a path of its REST interface."""
        import requests

        answer = requests.get(f"{self.url}{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def send(self, *files: Path) -> None:
        """Store files."""
        import requests

        for file in files:
            answer = requests.post(f"{self.url}/instances", data=file.read_bytes(), timeout=30)
            answer.raise_for_status()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
