"""Commands in processes of their own that do not wait for MONAI; see the fixture `forked`."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import runpy
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest


def option_words(options: Mapping[str, object]) -> list[str]:
    """``--key value`` for each option."""
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed, to stdout and stderr alike."""

    returncode: int
    told: str


class ForkedCommands:
    """Commands as ``python …`` runs them, in processes of their own that have MONAI imported.

    Importing MONAI takes longer than most commands do. A server imports it once, and every command
    is forked from it, which no thread of this process disturbs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, itertools.count()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["monai.bundle", "mcmiad_monai.cli.parser"])

    def start(
        self, line: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
    ) -> tuple[BaseProcess, Path]:
        """Begin ``python line …`` in a folder: the process, and what it prints into."""
        told = self.folder / f"{next(self.count)}.txt"
        request = {
            "folder": str(folder),
            "environment": dict(os.environ if environment is None else environment),
            "told": str(told),
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
        return process, told

    def run(
        self, line: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run ``python line …`` in a folder to its end."""
        process, told = self.start(line, folder, environment)
        process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, told.read_text(encoding="utf-8"))

    def run_group(self, line: Sequence[object], folder: Path, processes: int) -> None:
        """Run ``python line …`` in processes that find what torchrun tells each of its own."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        group = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        group["WORLD_SIZE"] = str(processes)
        begun = [
            self.start(line, folder, {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)
        ]
        try:
            for process, _ in begun:
                process.join(timeout=300)
        finally:
            for process, _ in begun:
                process.kill()
        told = "\n".join(file.read_text(encoding="utf-8")[-3000:] for _, file in begun)
        assert [process.exitcode for process, _ in begun] == [0] * processes, told
