"""Torture: kills, damaged files, bombs, full disks, hostile names and packages, wrong inputs.

    python benchmarks/torture.py                       # everything
    python benchmarks/torture.py --quick               # a few tries of each kind
    python benchmarks/torture.py --only kills --tries 200 --seed 1

Prints one table, tried and held by kind, and every try that did not hold. Writes all tries into
``benchmarks/results/torture.json`` and, with ``--markdown``, ``docs/results/torture.md``. The
studies are phantoms; the models are trained here, in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from torture_base import Bench, Try, as_data
from torture_bombs import run_bombs, run_disks
from torture_damage import run_flips
from torture_kills import run_kills
from torture_label import run_label
from torture_names import run_names
from torture_packages import run_packages
from torture_page import not_held, table, write_page
from torture_wrong import run_wrong

ROOT = Path(__file__).resolve().parents[1]
KINDS: dict[str, Callable[[Bench], None]] = {
    "kills": run_kills,
    "flips": run_flips,
    "packages": run_packages,
    "bombs": run_bombs,
    "disks": run_disks,
    "names": run_names,
    "inputs": run_wrong,
    "label": run_label,
}


def main(args: Sequence[str] | None = None) -> int:
    """Try all kinds; 1 if a try did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=list(KINDS), action="append", help="may be repeated")
    parser.add_argument("--tries", type=int, help="processes to kill in all (84; quick: 7)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few tries of each kind")
    parser.add_argument("--workers", type=int, default=2, help="tries at the same time")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "torture.json"
    )
    parser.add_argument("--markdown", action="store_true", help="also write the page of the docs")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the tries")
    options = parser.parse_args(args)
    start, root = time.monotonic(), Path(tempfile.mkdtemp(prefix="torture_")).resolve()
    bench = Bench(
        root,
        seed=options.seed,
        kills=options.tries or (7 if options.quick else 84),
        quick=options.quick,
        workers=options.workers,
    )
    try:
        for kind in options.only or KINDS:
            KINDS[kind](bench)
            report = written(bench, options, time.monotonic() - start)
    finally:
        if options.keep:
            print(f"tries: {root}", file=sys.stderr)
        else:
            shutil.rmtree(root, ignore_errors=True)
    tries = report.pop("all")
    print(f"{table(tries)}\n{not_held(tries)}{report['seconds']} seconds: {options.out}")
    return int(any(one.held is False for one in tries))


def written(bench: Bench, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Write what has been tried so far; the report, with the tries."""
    tries = sorted(bench.tries, key=lambda one: (order(bench.tries, one.kind), one.name))
    words = [f"--only {kind}" for kind in options.only or ()]
    words += ["--quick"] if options.quick else []
    report: dict[str, Any] = {
        "how": " ".join(["benchmarks/torture.py", *words]),
        "seed": bench.seed,
        "seconds": round(seconds),
    }
    content = json.dumps({**report, "tries": as_data(tries)}, indent=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(f"{content}\n", encoding="utf-8")
    if options.markdown:
        write_page(ROOT / "docs" / "results" / "torture.md", tries, report)
    return {**report, "all": tries}


def order(tries: Sequence[Try], kind: str) -> int:
    """Place of a kind: kinds stay in the order in which they were tried."""
    return list(dict.fromkeys(one.kind for one in tries)).index(kind)


if __name__ == "__main__":
    sys.exit(main())
