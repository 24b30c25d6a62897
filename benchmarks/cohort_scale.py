"""What a cohort costs beside the model: plan, records, table, questions and index page.

    python benchmarks/cohort_scale.py [--sizes 10000 100000 …] [--files 10000 …] [--report]

Simulates studies: a worker records begin and end of each, with a made-up row, and computes nothing.
Every worker is killed (SIGKILL) in the middle of a study at a third of its shard, and run again; it
is checked that each study has one end. Each stage runs in a process of its own, of which time and
peak memory are told; on a busy machine look at the time of its processor. `--files` looks for as
many studies in folder trees of small images.

Writes benchmarks/results/cohort_scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mcmiad_monai.cohort.ledger import Ledger, worker_name
from mcmiad_monai.cohort.plan import make_plan
from mcmiad_monai.cohort.results import collect, open_results, select
from mcmiad_monai.cohort.state import counts, todo

RESULTS = Path(__file__).parent / "results" / "cohort_scale.json"
TOP = 'SELECT "case", score FROM results ORDER BY score DESC NULLS LAST LIMIT 20'
BY_MODALITY = "SELECT modality, verdict, count(*), median(score) FROM results GROUP BY ALL"

Stage = dict[str, Any]


def main() -> None:
    """Measure, print the table, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 300_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--files", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--report", action="store_true", help="also write the index page")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows: list[Stage] = []
    print(f"{'studies':>9}  {'stage':<28}{'s':>9}{'CPU s':>9}{'CPU us a study':>16}{'peak MB':>9}")
    with tempfile.TemporaryDirectory(prefix="cohort_scale-") as place:
        for size in options.sizes:
            out = Path(place) / str(size)
            rows += measured(size, cohort(out, size, options.workers, options.report))
            shutil.rmtree(out)
        for size in options.files:
            rows += measured(size, trees(Path(place) / "tree", size))
            shutil.rmtree(Path(place) / "tree")
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    options.out.write_text(json.dumps({"machine": machine, "stages": rows}, indent=1) + "\n")


def measured(size: int, stages: Iterator[Stage]) -> Iterator[Stage]:
    """Print stages as they come."""
    for one in stages:
        if "seconds" in one:
            per_study = f"{one['cpu'] / size * 1e6:>16.1f}{one['peak_mb']:>9.0f}"
            told = f"{one['seconds']:>9.2f}{one['cpu']:>9.2f}{per_study}"
        else:
            told = "  ".join(f"{name} {n}" for name, n in one.items() if name != "stage")
        print(f"{size:>9}  {one['stage']:<28}{told}", flush=True)
        yield {"studies": size, **one}


def cohort(out: Path, size: int, workers: int, report: bool) -> Iterator[Stage]:
    """The stages of a cohort of simulated studies."""
    out.mkdir(parents=True)
    yield stage("plan", plan, out, size)
    yield stage("what is to be done", all_todo, out, size)
    yield together("record, killed", out, workers, size // workers // 3)
    yield stage("what is to be done", all_todo, out, size - workers * (size // workers // 3))
    yield together("record, resumed", out, workers, None)
    yield stage("counts", counted, out, size)
    yield stage("collect", collected, out, size)
    yield stage("open the table", asked, out, "SELECT count(*) FROM results")
    yield stage("open and top 20", asked, out, TOP)
    yield stage("open and group", asked, out, BY_MODALITY)
    yield stage("csv", as_csv, out)
    if report:
        yield stage("report, index", index_page, out)
    once(out, size, workers)
    files = [path for path in out.rglob("*") if path.is_file()]
    sizes = {path.name: path.stat().st_size for path in files if path.parent == out}
    records = sum(path.stat().st_size for path in files if path.parent.name == "records")
    told = {name: round(n / size, 1) for name, n in {**sizes, "records": records}.items()}
    yield {"stage": "bytes a study", **told}


def stage(name: str, run: Callable[..., Any], *arguments: Any) -> Stage:
    """Time and peak memory of a function in a process of its own, without the start of it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return {"stage": name, **process.submit(_timed, run, *arguments).result()}


def _timed(run: Callable[..., Any], *arguments: Any) -> Stage:
    start, before = time.perf_counter(), time.process_time()
    run(*arguments)
    told = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - before}
    return {**told, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def together(name: str, out: Path, workers: int, kill_after: int | None) -> Stage:
    """Workers at the same time, each with its shard, until all have ended or were killed."""
    context = get_context("spawn")
    start, before = time.perf_counter(), _of_children()
    processes = [
        context.Process(target=work, args=(out, (k, workers), kill_after)) for k in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        expected = 0 if kill_after is None else -signal.SIGKILL
        assert process.exitcode == expected, (process.exitcode, expected)
    told = {"seconds": time.perf_counter() - start, "cpu": _of_children() - before}
    # of all processes so far: those before had no more
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"stage": f"{name}, {workers} workers", **told, "peak_mb": peak}


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def plan(out: Path, size: int) -> None:
    """Write the plan."""
    names = (f"study_{number:07d}" for number in range(size))
    made = make_plan(out, ({"case": name, "image": f"/data/{name}.nii.gz"} for name in names))
    assert made == size


def all_todo(out: Path, expected: int) -> None:
    """Ask for all studies that are left, those that killed a worker last."""
    found = sum(1 for _ in todo(out))
    assert found == expected, (found, expected)


def work(out: Path, shard: tuple[int, int], kill_after: int | None) -> None:
    """Record the studies of a shard; in the middle of one the process kills itself."""
    ledger = Ledger(out, worker_name(shard[0]))
    for done, (study, _) in enumerate(todo(out, shard)):
        ledger.begin(study)
        if done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        ledger.end(study, **simulated(study["number"]))


def simulated(number: int) -> dict[str, Any]:
    """A row as a model would give it: 1 % are refused, 5 % anomalous."""
    draw = random.Random(number)
    if draw.random() < 0.01:
        return {"status": "refused", "error": "VolumeError: the volume has 4 dimensions, 3 needed"}
    score = draw.lognormvariate(-0.5, 0.3)
    return {
        "status": "done",
        "score": score,
        "threshold": 1.0,
        "verdict": "anomalous" if score > 1.0 else "normal",
        "warnings": "out_of_distribution" if draw.random() < 0.02 else "",
        "anomaly_ml": draw.expovariate(1.0),
        "hottest": draw.lognormvariate(0.5, 0.3),
        "hottest_x_mm": draw.uniform(-80, 80),
        "hottest_y_mm": draw.uniform(-80, 80),
        "hottest_z_mm": draw.uniform(-80, 80),
        "slices": 78,
        "slices_above": draw.randrange(10),
        "seconds": draw.uniform(1, 4),
        "modality": draw.choice(["flair", "t1", "ct"]),
        "input": f"{draw.getrandbits(256):064x}",
        "model": "0" * 64,
        "folder": None,
    }


def counted(out: Path, size: int) -> None:
    """Count by status."""
    found = counts(out)
    assert found["done"] + found["refused"] == size, found


def collected(out: Path, size: int) -> None:
    """Write results.parquet."""
    assert sum(collect(out).values()) == size


def asked(out: Path, query: str) -> None:
    """Open the results and ask."""
    with open_results(out) as connection:
        assert list(select(connection, query)[1])


def as_csv(out: Path) -> None:
    """Write results.csv by the command."""
    from mcmiad_monai.cli.parser import main

    assert main(["results", str(out), "--csv", str(out / "results.csv")]) == 0


def index_page(out: Path) -> None:
    """Write index.html."""
    from mcmiad_monai.cli.parser import main

    assert main(["-q", "report", str(out), "--studies", "0"]) == 0


def once(out: Path, size: int, workers: int) -> None:
    """Every study has one end, and those that were killed have two begins."""
    with open_results(out) as connection:
        attempts = "SELECT attempts, count(*) FROM results GROUP BY ALL ORDER BY attempts"
        found = list(select(connection, attempts)[1])
    lines = (line for path in (out / "records").iterdir() for line in path.open("rb"))
    ends = sum(b'"event": "end"' in line for line in lines)
    assert (ends, found) == (size, [(1, size - workers), (2, workers)]), (ends, found)


def trees(folder: Path, size: int) -> Iterator[Stage]:
    """Looking for studies that are files of one folder, or have folders of their own."""
    import nibabel
    import numpy as np

    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()
    for number in range(size):
        own = folder / "folders" / f"study_{number:07d}"
        own.mkdir(parents=True)
        (own / "image.nii").write_bytes(image)
    yield stage("find, a folder each", find, folder / "folders", size)
    (folder / "files").mkdir()
    for number in range(size):
        (folder / "files" / f"study_{number:07d}.nii").write_bytes(image)
    yield stage("find, one folder", find, folder / "files", size)


def find(folder: Path, size: int) -> None:
    """Find them."""
    from mcmiad_monai.data.cases.find import find_cases

    found = len(find_cases(folder))
    assert found == size, found


if __name__ == "__main__":
    sys.exit(main())
