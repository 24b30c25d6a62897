"""A headless Chromium that opens a page, and tells what happened in it.

Speaks the DevTools protocol over its own socket: a browser and `websockets` are all it needs.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: Software drawing, and none of the requests that a browser makes for itself.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader"),
    *("--enable-unsafe-swiftshader", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*"),
)
#: Seconds until the browser answers, and until a page says that it is ready.
START, PATIENCE = 60, 90


def find_chromium() -> str:
    """Path of the browser; a test that has none is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine; .ci/install-chromium installs Debian's")
    return found


class Browser:
    """One tab.

    Attributes
    ----------
    problems : list of str
        Errors of the console, exceptions, and violations of the page's policy, since `open`.
    requests : list of str
        Addresses that the page asked for since `open`, but those inside it.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and wait for its result."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(request))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE))
            self._note(message)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        method, told = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.problems.append(json.dumps(told["args"])[:600])
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.problems.append(told["entry"]["text"])
        elif method == "Audits.issueAdded" and "ContentSecurityPolicy" in told["issue"]["code"]:
            self.problems.append(json.dumps(told["issue"])[:600])
        elif method == "Network.requestWillBeSent":
            address = told["request"]["url"]
            if not address.startswith(("data:", "blob:")):
                self.requests.append(address)

    def open(self, page: Path, *, size: tuple[int, int] = (1280, 900), dark: bool = False) -> None:
        """Open a page that is a file, and wait until it is loaded."""
        self.visit(page.resolve().as_uri(), size=size, dark=dark)

    def visit(
        self, address: str, *, size: tuple[int, int] = (1280, 900), dark: bool = False
    ) -> None:
        """Open an address, and wait until its page is loaded."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.resize(*size)
        self.problems.clear()
        self.requests.clear()
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        """Give the page another size in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def ask(self, expression: str) -> Any:
        """Value of a JavaScript expression, or of its promise.

        Raises
        ------
        RuntimeError
            If it throws.
        """
        options = {"awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:600])
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true.

        Raises
        ------
        TimeoutError
            If it does not become so; with the page's problems.
        """
        end = time.monotonic() + PATIENCE
        while not self.ask(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} stays false; problems: {self.problems}")
            time.sleep(0.1)

    def press(self, key: str) -> None:
        """Press a key, e.g. ``"ArrowRight"``, in what has the focus."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def click_at(self, x: float, y: float, *, times: int = 1) -> None:
        """Click at a place of the window, once or twice."""
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                options = {"button": "left", "clickCount": count}
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)

    def click(self, selector: str, *, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """Click at a share of the width and height of an element."""
        x, y = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            f"return [b.x + {at[0]} * b.width, b.y + {at[1]} * b.height]; }})()"
        )
        self.click_at(x, y)

    def overflows(self) -> list[str]:
        """What reaches beyond the right edge of the window: the page itself, elements by class."""
        return list(
            self.ask(
                "(() => { const wide = document.scrollingElement.scrollWidth > innerWidth;"
                "const out = [...document.querySelectorAll('body *')].filter((e) => {"
                "const b = e.getBoundingClientRect();"
                "return b.width && b.right > innerWidth + 0.5 && !e.closest('.cell'); });"
                "return [...(wide ? ['page'] : []), ...out.map((e) => e.className || e.tagName)];"
                "})()"
            )
        )

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Write what the window shows as PNG; with `whole` all of the page."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser of its own, with a profile in an empty folder; ended afterwards."""
    from websockets.sync.client import connect

    command = [find_chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_page_address(process, profile), max_size=None) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _page_address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Address of the socket of the first tab; the browser writes its port into its profile."""
    end = time.monotonic() + START
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"chromium ended with {process.returncode}")
        try:
            port = (profile / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                pages = [tab for tab in json.load(answer) if tab["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
        except (OSError, IndexError):
            time.sleep(0.1)
    raise TimeoutError(f"chromium does not answer after {START} s")
