"""Makes `mcmiad watch` each result once, although it is killed: send, kill, count.

    python benchmarks/watch.py [--series 50] [--kills 2] [--shape 40 48 8] [--json FILE]

Sends small phantom series to an Orthanc of its own on this machine, starts `mcmiad watch`, and
kills it with SIGKILL after equal shares of the results; each time it is started again with the same
command. One series in ten lacks a slice and has to be refused. While it works, Orthanc is stopped
and started once. In the end it counts the reports in the archive: one for each good series.

Needs Orthanc (Debian's orthanc and orthanc-dicomweb) and the extra `dicom`. The model is a small
one of random weights: what is measured is the way around it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from brain_series import small_bundle, write_brain  # noqa: E402 (of the tests)
from orthanc_server import OrthancServer, missing_orthanc  # noqa: E402

#: One series in so many lacks a slice.
BAD = 10


class Watched:
    """The watcher as a process, and what is in the archive.

    Parameters
    ----------
    orthanc : OrthancServer
    bundle, folder : Path
        The model, and a folder for the watcher and its log.
    """

    def __init__(self, orthanc: OrthancServer, bundle: Path, folder: Path) -> None:
        self.orthanc, self.folder = orthanc, folder
        words = ["watch", orthanc.url, "--bundle", str(bundle), "--out", str(folder / "state")]
        words += ["--output", "seg,sr", "--poll", "1", "--device", "cpu", "--threads", "1"]
        self.command = [sys.executable, "-m", "mcmiad_monai.cli", *words]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start it; what it prints goes to a log."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with (self.folder / "watch.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *more], env=environment, stdout=log, stderr=log
            )
        return self.process

    def reports(self) -> Counter[str]:
        """Study of each report in the archive, and how many instances it has."""
        found: Counter[str] = Counter()
        for series in self.orthanc.get("/series?expand"):
            if series["MainDicomTags"]["Modality"] == "SR":
                study = self.orthanc.get(f"/studies/{series['ParentStudy']}")
                found[study["MainDicomTags"]["StudyInstanceUID"]] += len(series["Instances"])
        return found

    def counts(self) -> dict[str, int]:
        """Series that have ended, by how, as the watcher has written it down."""
        position = json.loads((self.folder / "state" / "position.json").read_text())
        return dict(position["counts"])

    def wait_for(self, count: int) -> None:
        """Wait until so many reports are in the archive."""
        while sum(self.reports().values()) < count:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError((self.folder / "watch.log").read_text()[-3000:])
            time.sleep(0.2)


def fill(orthanc: OrthancServer, folder: Path, count: int, shape: tuple[int, int, int]) -> set[str]:
    """Send series; the studies of those that are good."""
    good = set()
    for number in range(1, count + 1):
        files = sorted(write_brain(folder / str(number), number, shape=shape).iterdir())
        if number % BAD == 0:
            del files[len(files) // 2]
        else:
            good.add(f"1.2.41.{number}")
        orthanc.send(*files)
    return good


def measure(count: int, kills: int, shape: tuple[int, int, int], folder: Path) -> dict[str, Any]:
    """Send, watch, kill, start again, and count."""
    bundle = small_bundle(folder / "bundle")
    with OrthancServer(folder / "orthanc") as orthanc:
        good = fill(orthanc, folder / "series", count, shape)
        watched, started = Watched(orthanc, bundle, folder), time.monotonic()
        for kill in range(1, kills + 1):
            process = watched.start()
            watched.wait_for(len(good) * kill // (kills + 1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"killed at {sum(watched.reports().values())} reports", file=sys.stderr)
        process = watched.start()
        watched.wait_for(sum(watched.reports().values()) + 1)
        orthanc.stop()
        time.sleep(3)
        orthanc.start()
        watched.wait_for(len(good))
        while sum(watched.counts().values()) < count:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        ended = process.wait()
        left = watched.start("--once").wait()
        seconds = time.monotonic() - started
        reports = watched.reports()
        counts = watched.counts()
    return {
        "series": count,
        "good": len(good),
        "kills": kills,
        "reports": sum(reports.values()),
        "studies with one report": sum(n == 1 for n in reports.values()),
        "studies with more": sum(n > 1 for n in reports.values()),
        "good studies without": len(good - set(reports)),
        "others with a report": len(set(reports) - good),
        "counts": counts,
        "exit code of SIGTERM": ended,
        "exit code of a last look": left,
        "seconds": round(seconds, 1),
    }


def main() -> int:
    """Print the counts; 1 if one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=50)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(40, 48, 8))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if reason := missing_orthanc():
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="watch_") as folder:
        found = measure(options.series, options.kills, tuple(options.shape), Path(folder))
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    once = found["studies with one report"] == found["good"] == found["reports"]
    right = found["counts"]["done"] == found["good"] and found["exit code of a last look"] == 0
    return 0 if once and right else 1


if __name__ == "__main__":
    sys.exit(main())
