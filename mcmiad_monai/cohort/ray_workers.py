"""Workers as actors of Ray, on a cluster that is there or on one of this machine alone."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mcmiad_monai.cohort.driver import WorkersError
from mcmiad_monai.cohort.ledger import PLAN, Ledger, Row, Study, worker_name
from mcmiad_monai.cohort.local import OpenWork
from mcmiad_monai.errors import root_message
from mcmiad_monai.files.leftovers import partial_path, remove_leftovers

logger = logging.getLogger(__name__)

#: Workers in a row that may die before they have opened the model: then none ever will.
FAILED_STARTS = 3
#: Seconds that `RayWorkers.wait` waits for something to happen.
PATIENCE = 2.0
#: Seconds without any worker after which the user is told what is missing.
LONG = 60.0
#: Bytes of Ray's store of objects: rows are small, and Ray would take 30 % of the memory.
STORE = 100 * 2**20
LOOPBACK = "127.0.0.1"
#: Where Ray's sockets lie, whose paths have 107 characters at most.
SHORT = Path("/tmp")


class RayWorkers:
    """The `Workers` of a driver, by Ray.

    Ray starts as many actors as the cluster has room for, up to `count`. An actor opens the model
    once. One that dies takes the study that it had with it, and no other: Ray is told never to
    restart it, because a restarting actor refuses whatever it is given meanwhile.

    Parameters
    ----------
    open_work : callable
        Is pickled, and called once in each actor.
    out : path
        Folder of the cohort. Every machine of the cluster must see it under this path.
    count : int
        Studies at the same time.
    address : str, optional
        Of a cluster, as ``ray.init`` takes it (``auto``, ``host:6379``). By default a cluster is
        started on this machine, which listens on loopback only, and ended by `stop`.
    cores : int
        Cores of an actor.
    gpus : float
        GPUs of an actor, or the share of one.

    Raises
    ------
    WorkersError
        If Ray is not installed. From `start` and `wait`: if there is no cluster at the address, or
        its workers cannot open the model or do not see the folder.
    """

    def __init__(
        self,
        open_work: OpenWork,
        out: str | Path,
        count: int,
        address: str | None = None,
        *,
        cores: int = 1,
        gpus: float = 0,
    ) -> None:
        if find_spec("ray") is None:
            raise WorkersError(
                "Ray is not installed, and --engine ray needs it: "
                "pip install 'mcmiad-monai[cohort]', or use another engine."
            )
        self.count, self.out = count, Path(out).resolve()
        self._open_work, self._address, self._cores, self._gpus = open_work, address, cores, gpus
        self._ray: Any = None
        self._folder: Path | None = None
        self._waiting: deque[tuple[int, Study]] = deque()  # for any worker that is free
        self._free: deque[_Running] = deque()
        self._opening: dict[Any, _Running] = {}
        self._busy: dict[Any, tuple[int, Study, _Running]] = {}
        self._failed_starts, self._quiet_since = 0, time.monotonic()

    def start(self, k: int) -> None:
        """Ask Ray for one more actor."""
        if self._ray is None:
            self._connect()
        actor = self._kind.remote(self._open_work, self.out, k, self._cores)
        self._opening[actor.open.remote()] = _Running(k, actor)

    def give(self, k: int, study: Study) -> None:
        """Have a study done by the next actor that is free; `k` is only the name of the errand."""
        self._waiting.append((k, study))
        self._hand_out()

    def wait(self) -> list[tuple[int, Row | None]]:
        """Wait for an actor; see `Workers.wait`."""
        pending = [*self._busy, *self._opening]
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=PATIENCE)
        if ready:
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        ended = [self._ended(one) for one in ready if one in self._busy]
        for one in ready:
            if one in self._opening:
                self._opened(one)
        self._hand_out()
        self._complain()
        return ended

    def stop(self) -> None:
        """End all actors, and the cluster if it was started here."""
        try:
            for errand, (_, study, running) in self._busy.items():
                self._kill(running)
                with suppress(Exception):  # it has died, as it should
                    self._ray.get(errand, timeout=PATIENCE)
                _drop(self.out, running.worker, study)
            for running in (*self._opening.values(), *self._free):
                self._kill(running)
        finally:
            self._busy, self._opening = {}, {}
            self._free.clear()
            if self._ray is not None:
                self._ray.shutdown()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> None:
        """Join the cluster, or start one."""
        self._ray = _import_ray(alone=self._address is None)
        where: dict[str, Any] = {"address": self._address}
        if self._address is None:
            remove_leftovers(SHORT, levels=0)  # of drivers that were killed
            self._folder = partial_path(SHORT / "r")
            self._folder.mkdir(mode=0o700)
            where = {
                "num_cpus": self.count * self._cores,
                "num_gpus": self.count * self._gpus or None,
                "include_dashboard": False,
                "object_store_memory": STORE,
                "_node_ip_address": LOOPBACK,
                "_temp_dir": str(self._folder),
            }
        try:
            with _handler_kept():
                self._ray.init(**where, log_to_driver=False, logging_level="error")
        except Exception as error:
            done = f"joined at {self._address}" if self._address else "started on this machine"
            raise WorkersError(f"a Ray cluster cannot be {done}: {root_message(error)}") from error
        listens = self._ray.util.get_node_ip_address()
        if self._address is None and listens != LOOPBACK:
            raise WorkersError(
                f"the Ray cluster of this machine listens on {listens}, not on loopback alone. "
                "Another part of this process has imported Ray before; use --engine local"
            )
        self._kind = self._ray.remote(
            num_cpus=self._cores, num_gpus=self._gpus, max_restarts=0, max_task_retries=0
        )(_Actor)

    def _hand_out(self) -> None:
        while self._waiting and self._free:
            k, study = self._waiting.popleft()
            running = self._free.popleft()
            self._busy[running.actor.do.remote(study)] = (k, study, running)

    def _ended(self, errand: Any) -> tuple[int, Row | None]:
        """What became of a study; the actor is free again, or gone."""
        k, _, running = self._busy.pop(errand)
        try:
            row: Row = self._ray.get(errand)
        except self._ray.exceptions.RayTaskError as error:  # the study was not the reason
            raise _cannot_work(error) from error
        except self._ray.exceptions.RayError as error:
            logger.info("%s: %s", running.worker, root_message(error))
            self._kill(running)
            return k, None
        self._free.append(running)
        return k, row

    def _opened(self, opening: Any) -> None:
        """Take an actor into service, or start another one in the place of one that died."""
        running = self._opening.pop(opening)
        try:
            running.worker = self._ray.get(opening)
        except self._ray.exceptions.RayTaskError as error:
            raise _cannot_work(error) from error
        except self._ray.exceptions.RayError as error:
            self._kill(running)
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise WorkersError(
                    f"{FAILED_STARTS} workers in a row died before they had opened the model; the "
                    f"last one: {root_message(error)}"
                ) from error
            self.start(running.k)
            return
        self._failed_starts = 0
        self._free.append(running)

    def _kill(self, running: _Running) -> None:
        """End an actor; a handle of a dead one would keep its cores."""
        with suppress(Exception):  # it is dead already, or its machine
            self._ray.kill(running.actor, no_restart=True)

    def _complain(self) -> None:
        """Say what Ray waits for, where no actor has come for long."""
        if self._busy or not self._waiting:
            self._quiet_since = time.monotonic()
        elif time.monotonic() - self._quiet_since > LONG:
            self._quiet_since = time.monotonic()
            logger.warning(
                "no worker is ready: %d open the model, or wait for room in the Ray cluster, "
                "which has %g cores in all",
                len(self._opening),
                self._ray.cluster_resources().get("CPU", 0),
            )


class _Running:
    """An actor, and the name under which it writes its lines."""

    def __init__(self, k: int, actor: Any) -> None:
        self.k, self.actor, self.worker = k, actor, ""


class _Actor:
    """A process of the cluster that does studies."""

    def __init__(self, open_work: OpenWork, out: Path, k: int, cores: int) -> None:
        self.open_work, self.out, self.k, self.cores = open_work, out, k, cores

    def open(self) -> str:
        """Open the model; returns the name of the worker."""
        import torch

        from mcmiad_monai.cohort.work import do

        if not (self.out / PLAN).is_file():
            raise FileNotFoundError(
                f"{os.uname().nodename} does not see {self.out / PLAN}: every machine of the Ray "
                "cluster must see the folder of --out, the studies and the model under the same "
                "paths, as on a shared disk"
            )
        torch.set_num_threads(self.cores)
        self.one, self.work = do, self.open_work()
        self.ledger = Ledger(self.out, worker_name(self.k))
        return self.ledger.worker

    def do(self, study: Study) -> Row:
        """Do a study; returns the line of its end."""
        return self.one(self.work, self.ledger, study)


def _import_ray(*, alone: bool) -> Any:
    """Ray, which reads these variables when it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # it prints a paragraph for each death of a worker among what the command prints
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if alone:  # Ray without clusters of several machines listens on loopback alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # its workers would give way to every other process of the machine
        os.environ.setdefault("RAY_worker_niceness", "0")
    with _handler_kept():
        import ray
    return ray


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Keep what SIGTERM does; Ray has it end the process without another word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cannot_work(error: Any) -> WorkersError:
    """What went wrong in an actor, without what Ray wraps around it."""
    cause = getattr(error, "cause", None)
    return WorkersError(root_message(cause if isinstance(cause, Exception) else error))


def _drop(out: Path, worker: str, study: Study) -> None:
    """Take the begin of a study back in the name of a worker that was killed while it had it."""
    ledger = Ledger(out, worker)
    last: dict[str, Any] = {}
    with suppress(OSError), ledger.path.open("rb") as lines:
        for line in lines:
            with suppress(ValueError):
                last = json.loads(line)
    if last.get("event") == "begin" and last.get("number") == study["number"]:
        ledger.stop(study)
        ledger.close()
