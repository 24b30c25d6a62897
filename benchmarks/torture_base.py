"""What the kinds of torture share: tries, commands in processes of their own, looks at folders."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: Imported once, by the process that every command is forked from.
PRELOADED = ["monai.bundle", "mcmiad_monai.cli.parser", "mcmiad_monai.predictor"]
#: Seconds after which a command counts as hanging.
PATIENCE = 900.0
MCMIAD = ("-m", "mcmiad_monai.cli")


@dataclass
class Try:
    """One try: what was done, and whether the software held.

    Attributes
    ----------
    kind, name, done : str
        Row of the table; the input or situation; what was done with it.
    held : bool, optional
        None where it was not tried.
    seen : list of str
        What did not hold, or else what was noted.
    kills : int
        Signals that were sent.
    """

    kind: str
    name: str
    done: str
    held: bool | None = True
    seen: list[str] = field(default_factory=list)
    kills: int = 0

    def expect(self, right: bool, otherwise: str) -> bool:
        """Count something that must be so; `otherwise` says what was seen instead."""
        if not right:
            if self.held:
                self.seen.clear()
            self.held = False
            self.seen.append(otherwise)
        return right

    def note(self, text: str) -> None:
        """Keep what was seen, where nothing is wrong."""
        if self.held:
            self.seen.append(text)


@dataclass(frozen=True)
class Done:
    """How a command ended: negative codes are signals; peak resident memory in megabytes."""

    code: int
    told: str
    seconds: float
    peak: float
    killed: bool = False
    hung: bool = False

    @property
    def last(self) -> str:
        """Exit code and last line that was printed."""
        lines = self.told.strip().splitlines()
        return f"exit {self.code}{' (hung)' if self.hung else ''}: {lines[-1] if lines else ''}"

    @property
    def clean(self) -> bool:
        """Whether the command told what happened in words."""
        return not self.hung and "Traceback" not in self.told and "this is a bug" not in self.told


@dataclass(frozen=True)
class Limits:
    """Of a process: bytes of address space beyond those at its start, and of each file."""

    memory: int | None = None
    file: int | None = None


def forked(request: Mapping[str, Any]) -> None:
    """Be ``python LINE …``, in a process that has imported what is slow to import."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    with Path(request["told"]).open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if request["memory"]:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + request["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if request["file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file"], request["file"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background has none
    sys.argv = request["line"][1:]
    Path(f"{request['told']}.begun").touch()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


class Bench:
    """The folder of all tries, their generators of random numbers, and what came out.

    Parameters
    ----------
    root : path
        Everything is written below it.
    seed : int
    kills : int
        Processes to kill in all.
    quick : bool
        A few tries of each kind.
    workers : int
        Tries at the same time.
    """

    def __init__(self, root: Path, *, seed: int, kills: int, quick: bool, workers: int) -> None:
        self.root, self.seed, self.kills, self.quick = root, seed, kills, quick
        self.workers, self.tries = workers, list[Try]()
        self._count, self._lock = itertools.count(), threading.Lock()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[Path], Any]) -> Any:
        """What `make` returns for the folder of a name, made by the first who asks."""
        with self._lock:
            if name not in self._made:
                self._made[name] = make(self.root / name)
            return self._made[name]

    def random(self, *words: object) -> np.random.Generator:
        """A generator of its own for each name, whatever else is tried."""
        digest = hashlib.sha256(repr((self.seed, words)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def fresh(self, name: str) -> Path:
        """A new empty folder."""
        plain = "".join(c if c.isalnum() else "_" for c in name)[:40]
        with self._lock:
            folder = self.root / "tries" / f"{next(self._count):03d}_{plain}"
        folder.mkdir(parents=True)
        return folder

    @contextlib.contextmanager
    def attempt(self, kind: str, name: str, done: str) -> Iterator[tuple[Try, Path]]:
        """A try and its folder; an error of this script counts as not held."""
        one, folder = Try(kind, name, done), self.fresh(f"{kind} {name}")
        try:
            yield one, folder
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            one.expect(False, f"the look at it failed: {type(error).__name__}: {error} ({where})")
        with self._lock:
            one.seen = [plain(text, self.root) for text in one.seen]
            self.tries.append(one)
            verdict = {True: "held", False: "NOT HELD", None: "not tried"}[one.held]
            told = plain(f"{kind}: {name}: {verdict}  {'; '.join(one.seen)}", self.root)
            print(told[:400], file=sys.stderr, flush=True)

    def each(self, work: Callable[[Any], None], items: Iterable[Any]) -> None:
        """Do work for each item, several at a time."""
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(work, items))

    def run(
        self,
        *words: object,
        folder: Path | None = None,
        kill: tuple[signal.Signals, float] | None = None,
        limits: Limits = Limits(),
        environment: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> Done:
        """Run ``mcmiad WORDS``, or a module given as ``-m``, to its end or to a signal.

        Parameters
        ----------
        kill : (signal, seconds), optional
            What is sent, and when.
        """
        line = [str(word) for word in (words if words[0] == "-m" else (*MCMIAD, *words))]
        told = self.root / "told" / f"{next(self._count)}.txt"
        told.parent.mkdir(exist_ok=True)
        request = {
            "folder": str(folder or self.root),
            "environment": {**os.environ, **(environment or {})},
            "told": str(told),
            "line": line,
            "memory": limits.memory,
            "file": limits.file,
        }
        process = self._context.Process(target=forked, args=(request,))
        with self._lock:
            process.start()
        begun = Path(f"{told}.begun")
        while not begun.exists() and process.is_alive():
            time.sleep(0.002)
        start, peak, killed = time.monotonic(), 0.0, False
        while process.is_alive():
            process.join(0.01)
            elapsed = time.monotonic() - start
            peak = max(peak, resident(process.pid or 0))
            if kill and not killed and elapsed >= kill[1] and process.is_alive():
                os.kill(process.pid or 0, kill[0])
                killed = True
            if elapsed > patience:
                process.kill()
                process.join()
        seconds = time.monotonic() - start
        code = process.exitcode if process.exitcode is not None else -1
        text = told.read_text(encoding="utf-8", errors="replace") if told.exists() else ""
        return Done(code, text, seconds, peak, killed, seconds > patience)


def resident(process: int) -> float:
    """Largest resident memory of a process so far, in megabytes; 0 once it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return sum(float(row.split()[1]) for row in status.splitlines() if "VmHWM" in row) / 1024


def plain(text: str, root: Path) -> str:
    """A message without the folder of the tries and in one line."""
    shown = text.replace(str(root), "…")
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)
    return shown if len(shown) <= 300 else f"{shown[:200]} … {shown[-95:]}"


def tree(folder: Path, *, without: Sequence[Path] = ()) -> dict[str, str]:
    """Relative path → digest of all files below a folder; links and folders too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if any(path == other or other in path.parents for other in without):
            continue
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        else:
            found[name] = digest(path) if path.is_file() else "folder"
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """What two listings differ in, empty if nothing."""
    parts = {
        "missing": expected.keys() - found.keys(),
        "new": found.keys() - expected.keys(),
        "changed": {n for n in found.keys() & expected.keys() if found[n] != expected[n]},
    }
    return "; ".join(
        f"{how} {', '.join(sorted(names)[:4])}" for how, names in parts.items() if names
    )


def read_json(path: Path) -> Any:
    """Content of a JSON file, None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def scores_in(out: Path) -> dict[str, Any]:
    """Scores by study of ``scores.json``."""
    report = read_json(out / "scores.json") or {"scores": []}
    return {study["case"]: study for study in report["scores"]}


def failed_in(out: Path) -> dict[str, str]:
    """Messages by study of ``scores.json``."""
    report = read_json(out / "scores.json") or {"failed": {}}
    return dict(report["failed"])


def as_data(tries: Sequence[Try]) -> list[dict[str, Any]]:
    """Tries as JSON has them."""
    return [asdict(one) for one in tries]
