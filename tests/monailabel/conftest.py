"""Trained bundles, studies, and servers that stop when the tests do.

Everything listens on 127.0.0.1 alone, on ports that are free, with a home folder of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from orthanc_server import OrthancServer, missing_orthanc
from small_bundles import shared_once
from small_phantoms import write_mixed_cohort

import mcmiad_monai
from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.cli.demo import SETTINGS
from mcmiad_monai.phantom.brain import make_phantom
from mcmiad_monai.phantom.cohorts import write_brain_cohort

BRAIN, UNIFIED = "brain_mri_anomaly", "unified_anomaly"
SHAPE = (48, 56, 10)
#: Fast, and with random weights the lesions of phantoms still stand out.
SMALL: dict[str, Any] = {
    **SETTINGS,
    "encoder_name": "test_efficientnet.r160_in1k",
    "weights": "random",
    "stage_weights": [1.0, 0.0, 0.0, 0.0],
    "cosine_weight": 0.0,
    "score_terms": "both",
    "jitter_scale": 20.0,
    # random features are worth nothing to a memory
    "parts": "head",
    "symmetry": 0.0,
    "smooth_sigma": 0.0,
    "image_score": "eq7",
    "field_of_view": "whole",
    "context": 1,
    "max_epochs": 2,
    "device": "cpu",
    "progress": False,
}
START_SECONDS = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the extra, everything here but the layout is skipped."""
    if find_spec("monailabel") is None:
        reason = "MONAI Label is not installed; it comes with the extra `label`"
        for item in items:
            if Path(__file__).parent in item.path.parents and item.path.stem != "test_layout":
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def own_temporary_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are the caller's to remove; those of a test go with its folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("answers")))


@dataclass
class Study:
    """A phantom on disk, and where its lesion is."""

    path: Path
    lesion: np.ndarray

    @property
    def image(self) -> Any:
        return nib.load(self.path)


@dataclass
class Server:
    """A server that answers."""

    url: str
    log: Path

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


@pytest.fixture(scope="session")
def brain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The brain bundle, trained on phantoms; one worker trains, the others wait for it."""
    return shared_once(tmp_path_factory, BRAIN, train_brain)


@pytest.fixture(scope="session")
def unified_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The unified bundle, trained on phantoms, and the datalist of these."""
    root = shared_once(tmp_path_factory, UNIFIED, train_unified)
    return root, root / "cohort" / "datalist.json"


def train_brain(root: Path) -> None:
    """Train the brain bundle into a folder."""
    counts = {"train": 4, "val": 4, "test_normal": 0, "test_lesion": 0}
    cohort = write_brain_cohort(root.parent / "cohort", **counts, shape=SHAPE, progress=False)
    train_small(BRAIN, root, cohort)


def train_unified(root: Path) -> None:
    """Train the unified bundle into a folder, with the phantoms beside the configurations."""
    copy_bundle(UNIFIED, root)
    counts = {"train": 3, "val": 2, "test_normal": 0, "test_lesion": 1}
    shapes: dict[str, Any] = {"brain_shape": (40, 48, 8), "liver_shape": (48, 40, 8)}
    cohort = write_mixed_cohort(root / "cohort", **counts, **shapes)
    train_small(UNIFIED, root, cohort, slice_range=[0.0, 1.0], max_epochs=1)


def train_small(name: str, root: Path, cohort: Path, **more: Any) -> None:
    """Train a copy of a bundle whose own settings are those of `SMALL`, as the app needs them."""
    copy_bundle(name, root)
    path = root / "configs" / "train.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    for key, value in {**SMALL, **more}.items():
        (config if key in config else config["method"])[key] = value
    path.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    open_workflow(root, "train", {"dataset_dir": str(cohort / "datalist.json")}).run()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Study]:
    """Studies by name: two with a lesion (oblique grids), a sheared one with a lesion, a normal."""
    folder = tmp_path_factory.mktemp("phantoms")
    found = {}
    for name, seed, lesion in (
        ("mass", 501, "mass"),
        ("ring", 502, "ring"),
        ("sheared", 503, "mass"),
        ("normal", 504, None),
    ):
        phantom = make_phantom(seed, lesion=lesion, shape=SHAPE)
        affine = phantom.affine.copy()
        if name == "sheared":  # as with a tilted gantry
            affine[:3, 0] += 0.15 * affine[:3, 1]
        path = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(phantom.image, affine), path)
        found[name] = Study(path, phantom.mask > 0)
    return found


@pytest.fixture
def studies(phantoms: Mapping[str, Study], tmp_path: Path) -> Path:
    """A fresh folder of good studies."""
    return fill(tmp_path / "studies", phantoms)


def fill(folder: Path, phantoms: Mapping[str, Study]) -> Path:
    """Copy studies into a new folder."""
    folder.mkdir()
    for study in phantoms.values():
        shutil.copy(study.path, folder)
    return folder


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that are no brain MRI study, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    noise = rng.normal(300, 60, (24, 24, 6)).astype(np.float32)
    colour = np.zeros((24, 24, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    arrays = {
        "4-D": np.stack([noise, noise], -1),
        "RGB": colour,
        "CT": np.where(noise > 330, noise, noise - 1300).astype(np.int16),
        "constant": np.zeros((24, 24, 6), np.float32),
    }
    files = {}
    for name, array in arrays.items():
        files[name] = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 5, 1])), files[name])
    files["corrupt"] = folder / "corrupt.nii.gz"
    files["corrupt"].write_bytes(files["CT"].read_bytes()[:200])
    files["text"] = folder / "text.nii.gz"
    files["text"].write_bytes(b"this is no image")
    return files


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Server]]:
    """Start a server and wait until it answers; all of them are stopped at the end."""
    import requests

    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], folder: Path, port: int, path: str, **env: str) -> Server:
        server = Server(f"http://127.0.0.1:{port}", folder / "server.log")
        with server.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(folder) | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        started.append(process)
        until = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < until:
            try:
                if requests.get(f"{server.url}{path}", timeout=20).status_code == 200:
                    return server
            except requests.ConnectionError:
                time.sleep(0.25)
        pytest.fail(f"{command[0]} did not start:\n{server.tail()}")

    yield start
    for process in started:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=10)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait(timeout=10)


@pytest.fixture(scope="session")
def serve(
    tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., Server]
) -> Callable[..., Server]:
    """Start `monailabel start_server`, and wait until it answers."""

    def start(
        app: Path, studies: Path | str, *, conf: Mapping[str, str] | None = None, **env: str
    ) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app)]
        command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
        for name, value in (conf or {}).items():
            command += ["--conf", name, value]
        return launch(command, tmp_path_factory.mktemp("server"), port, "/info/", **env)

    return start


def environment(home: Path) -> dict[str, str]:
    """Variables of a server: nothing of the user's, one thread, no network beyond loopback."""
    folder = str(Path(sys.executable).parent)
    return {
        "PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
        "PYTHONPATH": str(Path(mcmiad_monai.__file__).parents[1]),  # the code under test
        "PYTHONUNBUFFERED": "1",
        "HOME": str(home),
        "TMPDIR": str(home),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        # the tests say when to score
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "NO_PROXY": "127.0.0.1",
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an Orthanc that answers this machine alone; skips where there is none."""
    if missing := missing_orthanc():
        pytest.skip(missing)
    with OrthancServer(tmp_path_factory.mktemp("orthanc")) as server:
        yield server.url


@pytest.fixture
def label_app(
    brain_bundle: Path, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The app in this process, over a fresh folder of studies."""
    from monailabel.config import settings

    from mcmiad_monai.monailabel.app import MCMIADApp
    from mcmiad_monai.monailabel.layout import lay_out_app

    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTO_UPDATE_SCORING", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    folder = lay_out_app(tmp_path / "app", [brain_bundle])
    return MCMIADApp(str(folder), str(studies), {})
