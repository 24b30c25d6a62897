"""300 studies by each engine of ``mcmiad screen``, with a kill of a worker and one of the driver.

Three of the studies kill their worker, five are no images. Each engine is started, a worker is
killed by SIGKILL when a fifth of the studies has ended, the driver (with Slurm that of one task)
when two fifths have, and the same command is run again. Afterwards each study must have exactly
one end, of the right kind. The network is a stub (`cohort_kills_work.py`); processes, ledger, Ray
and Slurm are real. Slurm's daemons are started in a folder of their own and ended.

    python benchmarks/cohort_kills.py --out benchmarks/results/cohort_kills.json
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mcmiad_monai.files.writing import write_text

HERE = Path(__file__).resolve().parent
STUB = [sys.executable, str(HERE / "cohort_kills_work.py")]
SLURM = HERE.parent / ".ci" / "slurm"
STUDIES, KILLERS, REFUSED = 300, 3, 5
PATIENCE = 1200.0
WORKERS = 2


def main() -> None:
    """Run the engines that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Raw)
    parser.add_argument("--engines", nargs="+", default=["local", "ray", "slurm"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {}
    for engine in options.engines:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            found[engine] = one_engine(engine, Path(folder))
        print(engine, json.dumps(found[engine]), flush=True)
    if options.out:
        write_text(options.out, json.dumps(found, indent=1) + "\n")


Raw = argparse.RawDescriptionHelpFormatter


def one_engine(engine: str, folder: Path) -> dict[str, Any]:
    """Kill and go on; what the ledger says then."""
    source, out = folder / "studies", folder / "out"
    write_studies(source)
    (folder / "model.pt").write_bytes(b"a stub needs none")
    line = ["screen", str(source), "--bundle", str(folder / "model.pt"), "--out", str(out)]
    line += ["--engine", engine, "--workers", str(WORKERS), "--quiet"]
    runs = Slurm(line, folder) if engine == "slurm" else Command(line)
    seconds, ends = list[float](), list[int]()
    try:
        for disturbed in (True, False):
            begun = time.perf_counter()
            runs.start()
            if disturbed:
                wait_for(lambda: ended(out) >= STUDIES // 5)
                os.kill(working(out), signal.SIGKILL)
                wait_for(lambda: ended(out) >= STUDIES * 2 // 5)
                os.kill(driver(out), signal.SIGKILL)
            code = runs.wait()
            seconds.append(round(time.perf_counter() - begun, 1))
            ends.append(ended(out))
    finally:
        runs.stop()
    return {"ended_when_resumed": ends[0], "seconds": seconds, "exit_code": code, **checked(out)}


def write_studies(folder: Path) -> None:
    """Copies of a small image; some kill, some are none."""
    folder.mkdir()
    image = folder / "study_000.nii.gz"
    values = np.random.default_rng(0).normal(size=(16, 16, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), image)
    for k in range(1, STUDIES - KILLERS - REFUSED):
        shutil.copy(image, folder / f"study_{k:03d}.nii.gz")
    for k in range(KILLERS):  # among the others, in the order of names
        shutil.copy(image, folder / f"study_{40 * k + 10:03d}_killer.nii.gz")
    for k in range(REFUSED):
        (folder / f"study_{50 * k + 20:03d}_refused.nii.gz").write_bytes(b"no image")


class Command:
    """The command with the stub, as a process."""

    def __init__(self, line: list[str]) -> None:
        self.line = [*STUB, *line]

    def start(self) -> None:
        """Start it."""
        self.process = subprocess.Popen(self.line)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE)

    def stop(self) -> None:
        """Nothing is left."""
        self.process.kill()


class Slurm:
    """The same by the jobs that the command writes."""

    def __init__(self, line: list[str], folder: Path) -> None:
        self.folder = folder / "daemons"
        started = subprocess.check_output([SLURM, "start", self.folder], text=True)
        os.environ["SLURM_CONF"] = started.strip()
        command = [sys.executable, "-m", "mcmiad_monai.cli"]
        self.submits = subprocess.check_output([*command, *line], text=True)
        array = folder / "out" / "slurm" / "array.sbatch"
        text = array.read_text(encoding="utf-8")
        write_text(array, text.replace(shlex.join(command), shlex.join(STUB)))

    def start(self) -> None:
        """Submit both jobs."""
        said = subprocess.check_output(["sh", "-ec", self.submits], text=True)
        self.collect = said.split()[-1]

    def wait(self) -> int:
        """The exit code of the collecting job."""
        wait_for(lambda: not subprocess.check_output(["squeue", "--noheader"]))
        job = subprocess.check_output(["scontrol", "show", "job", self.collect], text=True)
        return int(job.split("ExitCode=")[1].split(":")[0])

    def stop(self) -> None:
        """End the daemons."""
        subprocess.run([SLURM, "stop", self.folder], check=True)


def events(out: Path) -> list[dict[str, Any]]:
    """Whole lines of the records, by time."""
    lines = [x for f in (out / "records").glob("*.jsonl") for x in f.read_bytes().splitlines()]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # torn, or empty
            continue
    return sorted(found, key=lambda one: float(one["time"]))


def ended(out: Path) -> int:
    """How many studies have an end."""
    return len({e["case"] for e in events(out) if e["event"] == "end"})


def working(out: Path) -> int:
    """Number of a process that has a study."""
    return int(wait_for(lambda: _working(out)))


def _working(out: Path) -> str | None:
    last = {e["worker"]: e["event"] for e in events(out)}  # of each worker
    busy = [name.split("-")[-2] for name, event in last.items() if event == "begin"]
    return next((pid for pid in busy if Path(f"/proc/{pid}").exists()), None)


def driver(out: Path) -> int:
    """Number of the process of a driver, as its lock says."""
    lock = sorted((out / "locks").iterdir())[0]
    return int(lock.read_text(encoding="utf-8").split()[1])


def wait_for(what: Callable[[], Any]) -> Any:
    """Wait until something is true."""
    until = time.monotonic() + PATIENCE
    while not (found := what()):
        if time.monotonic() > until:
            raise TimeoutError("it did not happen")
        time.sleep(0.05)
    return found


def checked(out: Path) -> dict[str, Any]:
    """Counts of the ledger; what must hold is held."""
    lines = events(out)
    ends = Counter(e["case"] for e in lines if e["event"] == "end")
    states = Counter(e["status"] for e in lines if e["event"] == "end")
    begins = Counter(e["case"] for e in lines if e["event"] == "begin")
    right = {
        "quarantined": {case for case in ends if "killer" in case},
        "refused": {case for case in ends if "refused" in case},
    }
    for status, cases in right.items():
        found = {e["case"] for e in lines if e["event"] == "end" and e["status"] == status}
        if found != cases:
            raise AssertionError(f"{status}: {sorted(found ^ cases)}")
    if len(ends) != STUDIES or set(ends.values()) != {1}:
        raise AssertionError(f"{len(ends)} studies have ended, {ends.most_common(3)}")
    return {
        "studies": STUDIES,
        "states": dict(sorted(states.items())),
        "ends_of_a_study": sorted(set(ends.values())),
        "begun_more_than_once": sum(count > 1 for count in begins.values()),
    }


if __name__ == "__main__":
    main()
