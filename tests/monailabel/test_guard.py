"""What the app's server takes from clients: names, archives, sizes, and how many at once."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="MONAI Label comes with the extra `label`")

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.utils import app as apps
from starlette.testclient import TestClient

from mcmiad_monai.monailabel.guard import Limits
from mcmiad_monai.monailabel.requests import RequestError

MODEL = "brain_mri_anomaly"


@pytest.fixture
def client(label_app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """MONAI Label's own server in this process, with the app behind it."""
    server = importlib.import_module("monailabel.app").app
    for owner, name in ((server.router, "routes"), (server, "user_middleware")):
        monkeypatch.setattr(owner, name, list(getattr(owner, name)))
    monkeypatch.setattr(server, "exception_handlers", dict(server.exception_handlers))
    monkeypatch.setattr(server, "middleware_stack", None)
    monkeypatch.setattr(server.state, "mcmiad_guard", False, raising=False)
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", label_app.app_dir)
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", label_app.studies)
    key = f"{label_app.app_dir}{label_app.studies}"
    monkeypatch.setattr(apps, "apps", {key: label_app})
    label_app.limits = Limits(upload_mb=1, waiting=1)
    with TestClient(server, raise_server_exceptions=False) as found:
        yield found


def tree(*folders: str | Path) -> dict[str, tuple[int, int]]:
    """Time and size of all files, but for logs and what the datastore notes."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for folder in folders
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name not in (".lock", "datastore_v2.json")
    }


def test_code_of_the_app_cannot_be_replaced(client: TestClient, label_app: Any) -> None:
    files = {"file": ("main.py", b"raise SystemExit('not ours')")}
    answer = client.put("/datastore/image", params={"image": "../app/main"}, files=files)
    assert answer.status_code == 400
    assert "image is '../app/main'" in answer.json()["detail"]
    assert "MCMIADApp" in (Path(label_app.app_dir) / "main.py").read_text()


PATHS = (
    "../x",
    "%2e%2e%2fx",
    "%252e%252e%252fx",
    "..%5Cx",
    "/etc/hostname",
    "x%00",
    "..",
    "a%0Ab",
    "x" * 300,
)


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("PUT", "/datastore/image?image={}"),
        ("PUT", "/datastore/?image={}"),
        ("GET", "/datastore/image?image={}"),
        ("HEAD", "/datastore/image?image={}"),
        ("GET", "/datastore/image/info?image={}"),
        ("PUT", "/datastore/image/info?image={}"),
        ("DELETE", "/datastore/image?id={}"),
        ("PUT", "/datastore/label?image={}"),
        ("PUT", "/datastore/label?image=mass&tag={}"),
        ("GET", "/datastore/label?label={}&tag=final"),
        ("GET", "/datastore/label?label=mass&tag={}"),
        ("DELETE", "/datastore/label?id=mass&tag={}"),
        ("PUT", "/datastore/label/info?label=mass&tag={}"),
        ("POST", f"/infer/{MODEL}?image={{}}"),
        ("POST", f"/infer/{MODEL}?session_id={{}}"),
    ],
)
def test_names_with_path_parts_are_refused_and_nothing_is_written(
    client: TestClient, label_app: Any, method: str, address: str
) -> None:
    before = tree(Path(label_app.studies).parent, tempfile.gettempdir())
    files = None
    if method == "PUT" and "info" not in address:
        files = {"label" if "label" in address else "file": ("x.nii.gz", b"x")}
    for path in PATHS:
        answer = client.request(method, address.format(path), files=files)
        assert answer.status_code == 400, path
        assert method == "HEAD" or "a name is needed" in answer.json()["detail"]
    assert tree(Path(label_app.studies).parent, tempfile.gettempdir()) == before


@pytest.mark.parametrize(
    ("address", "params", "detail"),
    [
        (f"/infer/{MODEL}?image=mass", {"image": "/etc/hostname"}, "image is '/etc"),
        (f"/infer/{MODEL}?image=mass", {"label": "/etc/hostname"}, "label is '/etc"),
        (
            f"/infer/{MODEL}?image=mass",
            {"label_tag": "../../app", "save_label": True},
            "label_tag is '../../app'",
        ),
        (f"/infer/{MODEL}?image=mass", {"result_extension": "/../x.py"}, "result_extension"),
        (f"/infer/{MODEL}?image=mass", [1], "no JSON object"),
    ],
)
def test_parameters_of_an_inference_are_checked_too(
    client: TestClient, address: str, params: Any, detail: str
) -> None:
    answer = client.post(address, data={"params": json.dumps(params)})
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]
    for text in ("{", "[" * 10**5):
        answer = client.post(address, data={"params": text})
        assert answer.status_code == 400
        assert "params is no JSON" in answer.json()["detail"]


def test_background_tasks_take_no_paths_and_no_python(client: TestClient) -> None:
    for address, params in (
        (f"/batch/infer/{MODEL}", {"images": ["../x"]}),
        (f"/batch/infer/{MODEL}", {"label_tag": "../x"}),
        (f"/train/{MODEL}", {"bundle_path": "/tmp"}),
        ("/scoring/anomaly_score", {"bundle_path": "/tmp"}),
    ):
        answer = client.post(address, json=params)
        assert answer.status_code == 400, answer.text


def test_upload_is_kept_once_and_never_replaced(
    client: TestClient, label_app: Any, phantoms: Mapping[str, Any]
) -> None:
    studies, study = Path(label_app.studies), phantoms["ring"].path.read_bytes()
    # MONAI Label's client sends the path of the file as its name
    new = {"file": ("/home/someone/data/x.nii.gz", study)}
    assert client.put("/datastore/image?image=new", files=new).json() == {"image": "new"}
    assert (studies / "new.nii.gz").read_bytes() == study
    assert client.get("/datastore/image?image=new").content == study
    shutil.copy(phantoms["mass"].path, studies / "unlisted.nii")
    (studies / "gone.nii.gz").symlink_to(studies.parent / "outside.nii.gz")
    before = tree(studies, tempfile.gettempdir())
    for name in ("new", "mass", "unlisted", "gone"):
        for suffix in (".nii.gz", ".nii"):
            answer = client.put(
                f"/datastore/image?image={name}", files={"file": (f"x{suffix}", b"other")}
            )
            if name == "gone" and suffix == ".nii":
                continue  # nothing has that name
            assert answer.status_code == 409, (name, suffix, answer.text)
            assert "does not replace it" in answer.json()["detail"]
    (studies / "gone.nii").unlink()
    assert tree(studies, tempfile.gettempdir()) == before


def test_other_file_types_are_refused(client: TestClient, label_app: Any) -> None:
    before = tree(label_app.studies, tempfile.gettempdir())
    for name in ("x.py", "x", "x.nii.gz.sh", "../x.json"):
        answer = client.put("/datastore/image?image=x", files={"file": (name, b"x")})
        assert (answer.status_code, "file type" in answer.text) == (400, True), answer.text
        answer = client.put("/datastore/label?image=mass", files={"label": (name, b"x")})
        assert (answer.status_code, "file type" in answer.text) == (400, True), answer.text
    assert tree(label_app.studies, tempfile.gettempdir()) == before


def test_links_out_of_the_folder_are_not_served(
    client: TestClient, label_app: Any, phantoms: Mapping[str, Any]
) -> None:
    studies = Path(label_app.studies)
    outside = studies.parent / "outside.nii.gz"
    shutil.copy(phantoms["mass"].path, outside)
    (studies / "link.nii.gz").symlink_to(outside)
    (studies / "inner.nii.gz").symlink_to(studies / "mass.nii.gz")
    store = label_app.datastore()
    store.save_label("mass", str(outside), "final", {})
    store.refresh()
    for method, address in (
        ("GET", "/datastore/image?image=link"),
        ("DELETE", "/datastore/image?id=link"),
        ("POST", f"/infer/{MODEL}?image=link"),
    ):
        answer = client.request(method, address)
        assert (answer.status_code, "leads out" in answer.text) == (400, True), answer.text
    assert client.get("/datastore/image?image=inner").status_code == 200
    label = studies / "labels" / "final" / "mass.nii.gz"
    label.unlink()
    label.symlink_to(outside)
    files = {"label": ("x.nii.gz", b"other")}
    assert client.get("/datastore/label?label=mass&tag=final").status_code == 400
    assert client.put("/datastore/label?image=mass", files=files).status_code == 400
    assert client.get("/datastore/dataset").status_code == 400
    assert outside.read_bytes() == phantoms["mass"].path.read_bytes()


def test_sessions_keep_to_their_folder(client: TestClient, phantoms: Mapping[str, Any]) -> None:
    archive = {"files": ("x.tar", b"x")}
    answer = client.put("/session/?uncompress=true", files=archive)
    assert (answer.status_code, "not unpacked" in answer.text) == (400, True)
    assert client.put("/session/", files={"files": ("..", b"x")}).status_code == 400
    assert client.get("/session/%2e%2e?image=true").status_code == 400
    content = phantoms["ring"].path.read_bytes()
    named = {"files": ("C:\\data\\ring.nii.gz", content)}
    made = client.put("/session/", files=named).json()
    assert Path(made["session_info"]["image"]).name == "ring.nii.gz"
    assert client.get(f"/session/{made['session_id']}?image=true").content == content


def test_bodies_are_limited(client: TestClient) -> None:
    big = b"x" * 1_100_000

    def in_pieces() -> Iterator[bytes]:
        yield from (big[k : k + 100_000] for k in range(0, len(big), 100_000))

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\n'
    for address in ("/datastore/image?image=new", "/session/"):
        answer = client.put(address, files={"file": ("x.nii", big)})
        assert (answer.status_code, "at most 1 MB" in answer.text) == (413, True), answer.text

        def unannounced() -> Iterator[bytes]:
            yield start
            yield from in_pieces()

        answer = client.put(address, content=unannounced(), headers=headers)
        assert (answer.status_code, "at most 1 MB" in answer.text) == (413, True), answer.text


def test_limits_come_from_the_options_of_the_server() -> None:
    assert Limits.of({}) == Limits(upload_mb=2000, waiting=8)
    assert Limits.of({"max_upload_mb": "5", "max_waiting": "3"}) == Limits(5, 3)
    with pytest.raises(RequestError, match="max_waiting is 'many'"):
        Limits.of({"max_waiting": "many"})


def test_info_answers_during_an_inference_and_a_long_queue_is_refused(
    client: TestClient, label_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = label_app.tasks[MODEL]
    started, go_on, running, most = threading.Event(), threading.Event(), [0], [0]

    def slow(_request: Any) -> tuple[None, dict[str, Any]]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        started.set()
        assert go_on.wait(60)
        running[0] -= 1
        return None, {"volume_score": 1.0}

    monkeypatch.setattr(label_app, "_infers", {MODEL: SlowTask(task, slow)})
    answers: list[int] = []

    def ask() -> None:
        address = f"/infer/{MODEL}?image=mass&output=json"
        answers.append(client.post(address).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    until = time.monotonic() + 60
    while len(answers) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert answers == [429, 429]  # one runs, one waits
    begun = time.monotonic()
    assert client.get("/info/").status_code == 200
    assert time.monotonic() - begun < 5
    refused = client.post(f"/infer/{MODEL}?image=mass")
    assert refused.headers["retry-after"] == "10"
    assert "too many" in refused.json()["detail"]
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 200, 429, 429]
    assert most == [1]
    assert client.post(f"/infer/{MODEL}?image=mass&output=json").status_code == 200


class SlowTask:
    """An inference task that somebody else ends."""

    def __init__(self, task: Any, call: Any) -> None:
        self.task, self.call = task, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def __call__(self, request: Any) -> Any:
        return self.call(request)


def test_slides_and_uploads_to_a_dicomweb_server_are_refused(
    client: TestClient, label_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = client.post(f"/infer/wsi/{MODEL}?image=mass", json={})
    assert (answer.status_code, "slides" in answer.text) == (400, True)
    monkeypatch.setattr(label_app, "_datastore", object.__new__(DICOMWebDatastore))
    answer = client.put("/datastore/image?image=new", files={"file": ("x.nii", b"x")})
    assert (answer.status_code, "STOW-RS" in answer.text) == (400, True)


def test_app_made_anew_by_reload_is_still_that_of_a_server(client: TestClient) -> None:
    assert client.post("/reload").status_code == 200
    assert client.get("/info/").status_code == 200
    assert apps.app_instance()._server_mode


def test_studies_do_not_vanish_while_another_thread_refreshes(label_app: Any) -> None:
    class Slow(dict[str, Any]):
        def update(self, *args: Any, **kwargs: Any) -> None:
            time.sleep(0.05)
            super().update(*args, **kwargs)

    store = label_app.datastore()
    store._datastore.objects = Slow(store._datastore.objects)
    refreshing = threading.Thread(target=store.refresh)
    refreshing.start()
    while refreshing.is_alive():
        assert store.get_image_uri("mass")
        assert len(store.list_images()) == 4
        assert store.status()["total"] == 4
    refreshing.join()
