"""What a watcher is doing: a page for people and metrics for Prometheus, on this machine alone."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mcmiad_monai.dicom.web import OWN_DESCRIPTION
from mcmiad_monai.errors import escaped
from mcmiad_monai.version import __version__

#: Where it listens: never on other interfaces.
HOST = "127.0.0.1"
#: Names by which a browser on this machine asks; another one is a page that was made to resolve to
#: this machine.
NAMES = ("127.0.0.1", "localhost")
#: Seconds a series, for the histogram.
BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } td, th { padding: .2rem 1.5rem .2rem 0; text-align: left; }
th { white-space: nowrap; } td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
"""


class Status:
    """Numbers and states of a watcher; threads may change and read them.

    Parameters
    ----------
    url : str
        The archive.
    counts : mapping of str to int
        Series that ended in earlier runs, by how.
    """

    def __init__(self, url: str, counts: Mapping[str, int]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        every: dict[str, Any] = {"registry": self.registry}
        name = "mcmiad_watch_"
        self._ended = Counter(f"{name}series", "Series that have ended", ["status"], **every)
        self._pending = Gauge(f"{name}pending", "Series that have come and not ended", **every)
        self._position = Gauge(f"{name}position", "Number of the last change looked at", **every)
        self._seconds = Histogram(f"{name}seconds", "Of a series", buckets=BUCKETS, **every)
        self._error = Gauge(f"{name}last_error_timestamp_seconds", "Unix time", **every)
        self._up = Gauge(f"{name}archive_up", "1 where the archive answers", **every)
        self._lock, self._url, self._started = threading.Lock(), url, time.time()
        self._counts = dict(counts)
        self._state, self._told, self._told_at = "starting", "", 0.0
        for status, count in counts.items():
            self._ended.labels(status).inc(count)

    def ended(self, status: str, seconds: float | None = None) -> None:
        """A series has ended."""
        with self._lock:
            self._counts[status] = self._counts.get(status, 0) + 1
        self._ended.labels(status).inc()
        if seconds is not None:
            self._seconds.observe(seconds)

    def moved(self, position: int, pending: int) -> None:
        """The watcher has come to a change, and so many series are not done."""
        self._position.set(position)
        self._pending.set(pending)

    def state(self, state: str, *, up: bool = True) -> None:
        """What the watcher is doing, and whether the archive answers."""
        with self._lock:
            self._state = state
        self._up.set(int(up))

    def error(self, told: str) -> None:
        """Something went wrong."""
        with self._lock:
            self._told, self._told_at = told, time.time()
        self._error.set_to_current_time()

    def rows(self) -> dict[str, str]:
        """What the page shows."""
        with self._lock:
            rows = {"archive": self._url, "state": self._state}
            rows |= {f"series {status}": str(count) for status, count in self._counts.items()}
            rows["series pending"] = f"{self._value('pending'):.0f}"
            rows["position in the changes"] = f"{self._value('position'):.0f}"
            rows["running since"] = _when(self._started)
            if self._told:
                rows["last error"] = f"{_when(self._told_at)}: {self._told}"
        return rows | {"version": __version__}

    def _value(self, name: str) -> float:
        return float(self.registry.get_sample_value(f"mcmiad_watch_{name}") or 0)

    def page(self) -> str:
        """The page, as HTML."""
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(escaped(value))}</td></tr>"
            for name, value in self.rows().items()
        )
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta http-equiv="refresh" content="5"><title>mcmiad watch</title>'
            f"<style>{STYLE}</style><h1>mcmiad watch</h1><p>Results are for {OWN_DESCRIPTION}.</p>"
            f'<table>{cells}</table><p><a href="metrics">Metrics for Prometheus</a></p></html>'
        )

    def metrics(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


@contextmanager
def serve(status: Status, port: int) -> Iterator[str]:
    """Serve the page and ``/metrics`` on 127.0.0.1 meanwhile; gives the address.

    Parameters
    ----------
    port : int
        0 for a free one.

    Raises
    ------
    OSError
        If the port is taken.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            if self.headers.get("Host", "").rpartition(":")[0] not in NAMES:
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                self._answer(status.page().encode(), "text/html; charset=utf-8")
            elif self.path == "/metrics":
                self._answer(status.metrics(), "text/plain; version=0.0.4; charset=utf-8")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((HOST, port), Page)
    thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
