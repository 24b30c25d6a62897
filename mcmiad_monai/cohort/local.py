"""Workers that are processes of this machine, each with its share of the cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mcmiad_monai.cohort.driver import WorkersError
from mcmiad_monai.cohort.ledger import Ledger, Row, Study, worker_name
from mcmiad_monai.errors import root_message
from mcmiad_monai.runtime.interrupts import check, raised

#: Opens the model; what it returns does one study, and gives the columns of its row.
OpenWork = Callable[[], Callable[[Study], Row]]

#: Imported once for all workers.
PRELOADED = ["mcmiad_monai.cohort.preload"]
#: Variables that say how many threads a library may have; they are read when it is imported.
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
#: Seconds that `LocalWorkers.wait` waits for something to happen.
PATIENCE = 2.0
#: Seconds that a worker has to drop its study: the network is not interrupted within a batch.
GRACE = 30.0
#: Bytes of memory for a worker where nobody says how many there should be: a large CT takes 2.5 GB.
MEMORY = 3e9
#: Workers that share a GPU, and where its driver lists those of this machine: PyTorch, which knows
#: better, is not asked by a driver.
GPU_WORKERS, NVIDIA = 2, Path("/proc/driver/nvidia/gpus")


def default_workers(cores: int, device: str | None = None) -> int:
    """As many workers as there are cores, and no more than the memory is enough for.

    On a GPU two: one reads and writes while the other computes.

    Parameters
    ----------
    cores : int
    device : str, optional
        As it was asked for; by default a GPU if there is one.
    """
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # of a container; "max" is no number
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")
        memory = min(memory, float(limit))
    on_gpu = (device is None and any(NVIDIA.glob("*"))) or device not in (None, "cpu")
    return max(1, min(GPU_WORKERS if on_gpu else cores, cores, int(memory / MEMORY)))


class LocalWorkers:
    """The `Workers` of a driver, as processes.

    They are forked from a server that has imported what they need, which begins with the
    constructor; the driver itself never needs PyTorch. A worker whose driver is gone ends behind
    the study that it has.

    Parameters
    ----------
    open_work : callable
        Can be pickled; called once in each worker.
    out : path
        Folder of the cohort.
    count : int
        Number of workers.
    cores : int
        That they share.
    """

    def __init__(self, open_work: OpenWork, out: str | Path, count: int, *, cores: int) -> None:
        self.count = count
        # the first ones have what is left over
        self._threads = [max(1, cores // count + (k < cores % count)) for k in range(count)]
        self._open_work, self._out = open_work, Path(out)
        self._running: dict[int, _Running] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        with _environment(dict.fromkeys(THREADS, str(min(self._threads)))):
            forkserver.ensure_running()

    def start(self, k: int) -> None:
        """Start a worker; see `Workers.start`."""
        if old := self._running.pop(k, None):
            old.process.join()
            old.pipe.close()
        ours, its = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(its, self._open_work, self._out, k, self._threads[k]),
            name=f"worker {k}",
            daemon=True,
        )
        process.start()
        its.close()  # so that the end of the worker is the end of the pipe
        self._running[k] = _Running(process, ours)

    def give(self, k: int, study: Study) -> None:
        """Ask a worker to do a study; see `Workers.give`."""
        running = self._running[k]
        running.busy = True
        with suppress(OSError):  # it has died, as `wait` will tell
            running.pipe.send(study)

    def wait(self) -> list[tuple[int, Row | None]]:
        """Wait for a worker; see `Workers.wait`."""
        pipes = {running.pipe: k for k, running in self._running.items() if running.busy}
        ended: list[tuple[int, Row | None]] = []
        for pipe in connection.wait(list(pipes), PATIENCE):
            k = pipes[pipe]  # type: ignore[index]
            try:
                kind, content = self._running[k].pipe.recv()
            except (EOFError, OSError):
                self._note_death(k)
                ended.append((k, None))
                continue
            if kind == "log":
                logging.getLogger(content[0]).log(content[1], "%s", content[2])
            elif kind == "cannot":
                raise WorkersError(content)
            elif kind == "ready":
                self._running[k].ready = True
            else:
                self._running[k].busy = False
                ended.append((k, content))
        return ended

    def stop(self) -> None:
        """End all workers; see `Workers.stop`."""
        for running in self._running.values():
            if running.busy:
                running.process.terminate()
            else:
                running.pipe.close()
        until = time.monotonic() + GRACE
        for running in self._running.values():
            running.process.join(max(0.0, until - time.monotonic()))
            running.process.kill()
            running.process.join()
            running.pipe.close()
        self._running = {}

    def _note_death(self, k: int) -> None:
        running = self._running[k]
        running.busy = False
        running.process.join()
        if not running.ready:
            code = running.process.exitcode or 0
            how = f"by signal {-code}; was memory short? Then take fewer --workers"
            raise WorkersError(
                f"worker {k} ended before it could do a study "
                f"({how if code < 0 else f'with exit code {code}'})."
            )


class _Running:
    """A process, and what it was asked."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.busy = self.ready = False


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for a process that is started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _serve(pipe: Connection, open_work: OpenWork, out: Path, k: int, threads: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole terminal; the driver decides
    warnings.simplefilter("ignore")  # what matters of them is logged as well
    told = _Told(pipe, logging.INFO if k == 0 else logging.ERROR)
    logging.getLogger().addHandler(told)
    logging.getLogger("mcmiad_monai").setLevel(logging.INFO)
    with raised(), suppress(KeyboardInterrupt, BrokenPipeError):
        try:
            _work(told, open_work, out, k, threads)
        except Exception as error:
            check()
            told.send("cannot", root_message(error))


def _work(told: _Told, open_work: OpenWork, out: Path, k: int, threads: int) -> None:
    import torch

    from mcmiad_monai.cohort.work import do

    torch.set_num_threads(threads)
    work, ledger = open_work(), Ledger(out, worker_name(k))
    told.send("ready", None)
    told.setLevel(logging.WARNING)
    with suppress(EOFError):  # the driver is through, or gone
        while True:
            study = told.pipe.recv()
            check()
            told.send("end", do(work, ledger, study))


class _Told(logging.Handler):
    """What a worker tells its driver: messages of its threads, and the ends of studies."""

    def __init__(self, pipe: Connection, level: int) -> None:
        super().__init__(level)
        self.pipe, self._one = pipe, threading.Lock()

    def send(self, kind: str, content: Any) -> None:
        """Send a message."""
        with self._one:
            self.pipe.send((kind, content))

    def emit(self, record: logging.LogRecord) -> None:
        """Send what was logged."""
        with suppress(OSError):
            self.send("log", (record.name, record.levelno, record.getMessage()))
