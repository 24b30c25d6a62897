"""The app for MONAI Label behind its real server: hostile uploads, big bodies, many requests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torture_base import Bench, Try, differences, tree
from torture_model import Model, model

KIND = "MONAI Label app"
ROOT = Path(__file__).resolve().parents[1]
START_SECONDS, FLOOD = 240, 40
MODEL = "brain_mri_anomaly"
NAMES = ("../app/main", "%2e%2e%2fx", "%252e%252e%252fx", "..%5Cx", "/etc/hostname", "x%00")
NAMES = (*NAMES, "..", "a%0Ab", "x" * 300)
ADDRESSES = (
    ("PUT", "/datastore/image?image={}"),
    ("GET", "/datastore/image?image={}"),
    ("DELETE", "/datastore/image?id={}"),
    ("PUT", "/datastore/label?image={}"),
    ("PUT", "/datastore/label?image=good&tag={}"),
    ("GET", "/datastore/label?label=good&tag={}"),
    ("GET", "/datastore/image/info?image={}"),
    ("POST", f"/infer/{MODEL}?image={{}}"),
    ("POST", f"/infer/{MODEL}?image=good&session_id={{}}"),
)


def python() -> Path | None:
    """Python of the environment with MONAI Label: ``.venv-label``, or that of ``LABEL_VENV``."""
    path = Path(os.environ.get("LABEL_VENV", ROOT / ".venv-label")) / "bin" / "python"
    return path if path.is_file() else None


def run_label(bench: Bench) -> None:
    """All requests, to one server."""
    of, program = model(bench), python()
    if program is None:
        with bench.attempt(KIND, "server", "not run") as (one, _):
            one.held = None
            one.seen.append(
                "MONAI Label is not installed (.venv-label, or the variable LABEL_VENV)"
            )
        return
    server = Server(bench, of, program)
    try:
        with bench.attempt(KIND, "start", "monailabel start_server") as (one, _):
            server.start()
            one.note("/info answers")
        if server.alive:
            plan = list(REQUESTS)[:: 3 if bench.quick else 1]
            for name in plan:  # one after the other: what one writes, another would see
                with bench.attempt(KIND, name, "requests to the server") as (one, _):
                    REQUESTS[name](server, one)
                    one.expect(server.alive, "the server has ended")
            step = 4 if bench.quick else 1
            bench.each(partial(_named, bench, server), ADDRESSES[::step])
    finally:
        server.stop()


class Server:
    """`monailabel start_server` on a free port of this machine."""

    def __init__(self, bench: Bench, of: Model, program: Path) -> None:
        self.folder = bench.fresh("label")
        self.app, self.studies = self.folder / "app", self.folder / "studies"
        done = bench.run("label-app", self.app, "--bundle", self._bundle(of))
        if done.code:
            raise RuntimeError(f"the app could not be laid out: {done.told}")
        of.good(self.studies)
        self.study = (self.studies / "good.nii.gz").read_bytes()
        self.program, self.process = program, None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def _bundle(self, of: Model) -> Path:
        return Path(shutil.copytree(of.bundle, self.folder / "bundles" / MODEL))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        folder = str(self.program.parent)
        environment = {
            "PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        }
        command = [str(self.program), "-m", "monailabel.main", "start_server"]
        command += ["--app", str(self.app), "--studies", str(self.studies)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--conf", "max_upload_mb", "20", "--conf", "max_waiting", "2"]
        with (self.folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        until = time.monotonic() + START_SECONDS
        while self.alive and time.monotonic() < until:
            try:
                if self.ask("GET", "/info/", timeout=20).status_code == 200:
                    return
            except OSError:
                time.sleep(0.5)
        log_end = (self.folder / "server.log").read_text(errors="replace")[-600:]
        self.stop()
        raise RuntimeError(f"the server did not start: {log_end}")

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End it and all that it started."""
        if self.process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(timeout=10)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

    def ask(self, method: str, address: str, **options: Any) -> Any:
        """One request."""
        import requests

        options.setdefault("timeout", 180)
        return requests.request(method, f"{self.url}{address}", **options)

    def files(self) -> dict[str, str]:
        """All files of app, studies and bundles, but logs and what the datastore notes."""
        noted = ("datastore_v2.json", ".lock", "server.log")
        found = tree(self.folder)
        kept = {n: how for n, how in found.items() if not n.endswith(noted) and how != "folder"}
        return {n: how for n, how in kept.items() if "/logs/" not in n and "__pycache__" not in n}


def _named(bench: Bench, server: Server, where: tuple[str, str]) -> None:
    """Names with path parts at one address: 400, and no file changes."""
    method, address = where
    with bench.attempt(KIND, f"{method} {address}", f"{len(NAMES)} hostile names") as (one, _):
        before = server.files() if bench.workers == 1 else {}
        files = {"label" if "label" in address else "file": ("x.nii.gz", b"x")}
        for name in NAMES:
            options = {"files": files} if method == "PUT" else {}
            answer = server.ask(method, address.format(name), **options)
            one.expect(400 <= answer.status_code < 500, f"{name[:30]}: {answer.status_code}")
        if before:
            changed = differences(server.files(), before)
            one.expect(not changed, f"files: {changed}")
        code = (server.app / "main.py").read_text()
        one.expect("MCMIADApp" in code, "the app's code was replaced")
        one.note("all 4xx")


def _upload(server: Server, image: str, name: str, content: bytes) -> Any:
    return server.ask("PUT", f"/datastore/image?image={image}", files={"file": (name, content)})


def replaced(server: Server, one: Try) -> None:
    """An upload in the place of a study: 409."""
    for suffix in (".nii.gz", ".nii"):
        answer = _upload(server, "good", f"x{suffix}", b"other")
        one.expect(answer.status_code == 409, f"{suffix}: {answer.status_code}")
    same = (server.studies / "good.nii.gz").read_bytes() == server.study
    one.expect(same, "the study was replaced")
    one.note("409")


def kept(server: Server, one: Try) -> None:
    """A good upload is kept and served."""
    answer = _upload(server, "fresh", "/home/someone/fresh.nii.gz", server.study)
    one.expect(answer.status_code == 200, f"{answer.status_code}: {answer.text[:100]}")
    served = server.ask("GET", "/datastore/image?image=fresh").content
    one.expect(served == server.study, "what is served is not what was sent")
    one.note("kept and served")


def file_types(server: Server, one: Try) -> None:
    """Other file types: 400."""
    before = server.files()
    for name in ("x.py", "x", "x.nii.gz.sh", "../x.json", "x.yaml", ".htaccess"):
        answer = _upload(server, "x", name, b"x")
        one.expect(answer.status_code == 400, f"{name}: {answer.status_code}")
    changed = differences(server.files(), before)
    one.expect(not changed, f"files: {changed}")
    one.note("all 400")


def big_bodies(server: Server, one: Try) -> None:
    """Bodies above the limit: 413, announced or not."""
    big = b"x" * (25 << 20)

    def pieces() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\n'
        yield from (big[k : k + (1 << 20)] for k in range(0, len(big), 1 << 20))

    head = {"Content-Type": "multipart/form-data; boundary=x"}
    for how, options in (
        ("announced", {"files": {"file": ("x.nii", big)}}),
        ("in pieces", {"data": pieces(), "headers": head}),
    ):
        try:
            code = server.ask("PUT", "/datastore/image?image=big", **options).status_code
        except OSError:  # the server answers and closes while the body is still sent
            code = 413
        one.expect(code == 413, f"{how}: {code}")
    one.expect(not list(server.studies.glob("big*")), "the study was kept")
    one.note("413")


def links(server: Server, one: Try) -> None:
    """Links out of the folder of the studies are not served."""
    outside = server.folder / "outside.nii.gz"
    outside.write_bytes(server.study)
    (server.studies / "link.nii.gz").symlink_to(outside)
    for method, address in (
        ("GET", "/datastore/image?image=link"),
        ("DELETE", "/datastore/image?id=link"),
        ("POST", f"/infer/{MODEL}?image=link"),
    ):
        answer = server.ask(method, address)
        one.expect(400 <= answer.status_code < 500, f"{method}: {answer.status_code}")
    one.expect(outside.exists(), "the file outside was deleted")
    (server.studies / "link.nii.gz").unlink(missing_ok=True)
    one.note("all 4xx")


def parameters(server: Server, one: Try) -> None:
    """Paths in the parameters of requests: 400."""
    before = server.files()
    for params in (
        {"image": "/etc/hostname"},
        {"label": "/etc/hostname"},
        {"label_tag": "../../app", "save_label": True},
        {"result_extension": "/../x.py"},
        [1],
        "x",
    ):
        address = f"/infer/{MODEL}?image=good"
        answer = server.ask("POST", address, data={"params": json.dumps(params)})
        one.expect(400 <= answer.status_code < 500, f"{params}: {answer.status_code}")
    for address, body in (
        (f"/batch/infer/{MODEL}", {"images": ["../x"]}),
        (f"/train/{MODEL}", {"bundle_path": "/tmp"}),
        (f"/infer/wsi/{MODEL}?image=good", {}),
    ):
        answer = server.ask("POST", address, json=body)
        one.expect(400 <= answer.status_code < 500, f"{address}: {answer.status_code}")
    changed = differences(server.files(), before)
    one.expect(not changed, f"files: {changed}")
    one.note("all 4xx")


def damaged_study(server: Server, one: Try) -> None:
    """A damaged study: an error, and the next request is answered."""
    (server.studies / "damaged.nii.gz").write_bytes(server.study[:500])
    answer = server.ask("POST", f"/infer/{MODEL}?image=damaged&output=json")
    one.expect(400 <= answer.status_code < 600, f"{answer.status_code}")
    answer = server.ask("POST", f"/infer/{MODEL}?image=good&output=json")
    one.expect(answer.status_code == 200, f"afterwards: {answer.status_code}")
    (server.studies / "damaged.nii.gz").unlink()
    one.note("an error, and then an answer")


def flood(server: Server, one: Try) -> None:
    """Many inferences at once: each is answered or 429, and /info meanwhile."""
    codes: list[int] = []

    def infer() -> None:
        codes.append(server.ask("POST", f"/infer/{MODEL}?image=good&output=json").status_code)

    threads = [threading.Thread(target=infer) for _ in range(FLOOD)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        begun = time.monotonic()
        one.expect(server.ask("GET", "/info/", timeout=60).status_code == 200, "/info failed")
        slowest = max(slowest, time.monotonic() - begun)
        time.sleep(0.1)
    one.expect(set(codes) <= {200, 429} and len(codes) == FLOOD, f"answers: {sorted(set(codes))}")
    one.expect(200 in codes, "none was answered")
    one.expect(429 in codes, "none was refused")
    one.expect(slowest < 20, f"/info took {slowest:.1f} s")
    one.note(f"{codes.count(200)} done, {codes.count(429)} refused; /info within {slowest:.1f} s")


REQUESTS: dict[str, Callable[[Server, Try], None]] = {
    "study is replaced": replaced,
    "study is kept": kept,
    "file types": file_types,
    "big bodies": big_bodies,
    "links": links,
    "parameters": parameters,
    "damaged study": damaged_study,
    "flood": flood,
}
