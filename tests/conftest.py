"""Shared fixtures. Two test workers share two cores, so each worker computes on one thread."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from mcmiad_monai.data.phantom import write_phantom_cohort

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights beside the checkout; a user who clones the project has none."""
    if not SHARED.exists():
        pytest.skip("no ../shared folder beside the checkout: real images and weights are absent")
    return SHARED


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small phantom studies with a datalist; read it, do not write into it."""
    return write_phantom_cohort(
        tmp_path_factory.mktemp("phantoms") / "cohort",
        train=4,
        val=4,
        test_normal=2,
        test_lesion=2,
        shape=(40, 48, 10),
        progress=False,
    )


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class ForkedCommands:
    """Commands as ``python …`` runs them, in processes of their own that have MONAI imported.

    Importing MONAI takes longer than most commands do. A server imports it once, and every command
    is forked from it, which no thread of this process disturbs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, itertools.count()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["monai.bundle", "mcmiad_monai.cli"])

    def start(
        self, line: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
    ) -> tuple[BaseProcess, Path, Path]:
        """Begin ``python line …`` in a folder: the process, and what it prints into."""
        number = next(self.count)
        out, err = (self.folder / f"{number}.{name}" for name in ("stdout", "stderr"))
        request = {
            "folder": str(folder),
            "environment": dict(os.environ if environment is None else environment),
            "stdout": str(out),
            "stderr": str(err),
            "line": [str(word) for word in line],
        }
        script = Path(__file__).with_name("forked_command.py")
        with pytest.MonkeyPatch.context() as patch:
            # the server takes it over when it begins, with the first command
            patch.setenv("OMP_NUM_THREADS", "1")
            process = self.context.Process(
                target=runpy.run_path, args=(str(script), {"REQUEST": request}, "__main__")
            )
            process.start()
        return process, out, err

    def run(
        self, line: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run ``python line …`` in a folder to its end."""
        process, out, err = self.start(line, folder, environment)
        process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, out.read_text(), err.read_text())


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> ForkedCommands:
    """Commands in processes of their own, without waiting for MONAI each time."""
    return ForkedCommands(tmp_path_factory.mktemp("forked"))
