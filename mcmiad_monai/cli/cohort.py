"""The command ``screen``."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.cli.console import OK, print_json
from mcmiad_monai.cli.options import (
    Commands,
    add_command,
    add_json,
    add_max_voxels,
    add_modality,
    add_overrides,
    named,
    positive,
)
from mcmiad_monai.cohort.options import KEEP
from mcmiad_monai.errors import escaped

if TYPE_CHECKING:
    from mcmiad_monai.cohort.driver import Workers
    from mcmiad_monai.cohort.ledger import Ledger, Row
    from mcmiad_monai.cohort.options import WorkOptions

logger = logging.getLogger(__name__)

ENGINES = ("local", "ray", "slurm", "shard")
#: Statuses of studies that can be done anew.
AGAIN = ("failed", "refused", "quarantined")
#: Reasons that are told at the end.
REASONS = 5
#: Seconds between two looks of ``--follow``.
FOLLOW = 2.0


def add_commands(commands: Commands) -> None:
    """Add the parser."""
    screen = add_command(
        commands, "screen", _screen, "infer many studies by many processes; run again to go on"
    )
    screen.add_argument(
        "source",
        nargs="*",
        metavar="SOURCE",
        help="studies, folders, datalists, lists of paths (.csv, .parquet), DICOMweb addresses",
    )
    screen.add_argument("--bundle", type=Path, help="trained bundle, or its model.pt")
    screen.add_argument("--out", type=Path, required=True, help="folder of the cohort")
    screen.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="processes of this machine (local), a Ray cluster, an array job of Slurm, or one "
        "shard of the studies on this machine (default: local)",
    )
    screen.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="studies at the same time (default: one a core, as far as the memory is enough)",
    )
    screen.add_argument(
        "--shard",
        metavar="I/N",
        help="which part of the studies, 0/N to N-1/N (default: as Slurm or Kubernetes says)",
    )
    screen.add_argument("--address", help="of a Ray cluster (default: one on this machine)")
    screen.add_argument(
        "--attempts",
        type=positive,
        default=3,
        metavar="N",
        help="workers that a study may kill before it is left alone (default: 3)",
    )
    screen.add_argument(
        "--again",
        choices=AGAIN,
        action="append",
        default=[],
        help="do studies anew that ended so, as when a disk was away; may be repeated",
    )
    screen.add_argument(
        "--keep",
        choices=KEEP,
        default="all",
        help="which studies keep heatmap, mask and scores as files (default: all)",
    )
    screen.add_argument(
        "--collect", action="store_true", help="only write results.parquet of what is done"
    )
    screen.add_argument(
        "--follow", action="store_true", help="only show how far a running cohort is"
    )
    screen.add_argument("--submit", action="store_true", help="submit what --engine slurm writes")
    screen.add_argument(
        "--sbatch",
        type=named,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the jobs of --engine slurm, e.g. partition=long; may be repeated",
    )
    screen.add_argument(
        "--query",
        type=named,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="which series of a DICOMweb address, e.g. Modality=MR; may be repeated",
    )
    screen.add_argument(
        "--image-name",
        metavar="WORD",
        help="word in the file names of the images, where a study has several, e.g. flair",
    )
    add_modality(screen)
    add_max_voxels(screen)
    # the driver itself computes nothing: other names than those of the options of this process
    screen.add_argument(
        "--device",
        dest="of_workers",
        help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)",
    )
    screen.add_argument(
        "--threads",
        dest="each",
        type=positive,
        metavar="N",
        help="CPU threads of each worker (default: its share of the cores)",
    )
    add_json(screen)
    add_overrides(screen, "override a setting of the bundle's inference.yaml")


def _screen(options: argparse.Namespace) -> int:
    if options.follow:
        return _follow(options.out)
    if options.collect:
        return _collected(options)
    if not options.source or options.bundle is None:
        raise ValueError("mcmiad screen needs SOURCE and --bundle, but with --collect or --follow.")
    if options.engine == "slurm":
        return _slurm(options)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    """Do all studies, or those of a shard."""
    from mcmiad_monai.cohort.driver import run
    from mcmiad_monai.cohort.identity import check_run
    from mcmiad_monai.cohort.ledger import Ledger, worker_name
    from mcmiad_monai.cohort.lock import only_driver
    from mcmiad_monai.cohort.plan import make_plan, room_needed
    from mcmiad_monai.cohort.state import counts, todo
    from mcmiad_monai.files.room import prepare_output

    out, shard = options.out, _shard(options)
    work, identity, cases = _chosen(options)
    prepare_output(out, levels=0)
    workers = _workers(options, work)
    with only_driver(out, shard):
        check_run(out, identity)
        studies = make_plan(out, cases)
        ledger = Ledger(out, worker_name("driver"))
        _repeat(options, ledger, shard)
        left = sum(1 for _ in todo(out, shard))
        # each study's own folder is cleared by the worker that does it
        prepare_output(out, room=room_needed(out, left) if work.keep == "all" else 0, levels=0)
        tally = _Tally(len(range(shard[0], studies, shard[1])), left, quiet=options.quiet)
        try:
            limit = {"attempts": options.attempts, "ended": tally.add}
            run(todo(out, shard), workers, ledger, **limit)
        except KeyboardInterrupt as stop:
            stop.args = (_summary(out, counts(out)),)
            raise
        finally:
            tally.bar.close()
            ledger.close()
    if shard == (0, 1):
        return _collected(options)
    return _ended(options, counts(out), tally.reasons)


def _repeat(options: argparse.Namespace, ledger: Ledger, shard: tuple[int, int]) -> None:
    """Begin another round of the studies of ``--again``."""
    from mcmiad_monai.cohort.state import to_repeat

    for study in to_repeat(options.out, options.again, shard) if options.again else ():
        ledger.again(study)


def _chosen(options: argparse.Namespace) -> tuple[WorkOptions, dict[str, Any], Any]:
    """How studies are looked at, what the results depend on, and the studies."""
    from mcmiad_monai.cohort.identity import run_identity
    from mcmiad_monai.cohort.options import WorkOptions
    from mcmiad_monai.cohort.sources import studies_of
    from mcmiad_monai.files.reading import read_yaml
    from mcmiad_monai.inference.settings import SETTINGS, InferenceOptions

    others = {"split": "test", "pictures": True, "device": options.of_workers}
    given = dict(options.overrides)
    if unknown := sorted(set(given) - set(SETTINGS) - set(others)):
        raise ValueError(
            f"{', '.join(unknown)}: no such setting. There are {', '.join((*SETTINGS, *others))}."
        )
    others |= {key: given.pop(key) for key in others if key in given}
    if options.modality:
        given.setdefault("study_modality", options.modality)
    if options.max_voxels:
        given["max_voxels"] = options.max_voxels
    inference = {SETTINGS[key]: value for key, value in given.items()}
    InferenceOptions(**inference)  # refuses what is of no use, before anything is written
    of_plan = {"split": others["split"], "image_name": options.image_name, "query": options.query}
    of_files = {"keep": options.keep, "pictures": others["pictures"]}
    identity = run_identity(options.bundle, options.source, settings=given, **of_plan, **of_files)
    yaml = options.bundle / "configs" / "inference.yaml"
    cases = studies_of(
        options.source,
        modality=read_yaml(yaml).get("modality") if yaml.is_file() else None,
        study_modality=given.get("study_modality"),
        **of_plan,
    )
    work = WorkOptions(device=others["device"], inference=inference, **of_files)
    return work, identity, cases


def _shard(options: argparse.Namespace) -> tuple[int, int]:
    """Which part of the studies, of how many."""
    from mcmiad_monai.cohort.shards import parse_shard, shard_of_task

    if options.engine != "shard":
        if options.shard is not None:
            raise ValueError(f"--shard {options.shard} is for --engine shard.")
        return 0, 1
    shard = parse_shard(options.shard) if options.shard else shard_of_task()
    if shard is None:
        raise ValueError(
            "--engine shard needs --shard I/N: this is no task of an array of Slurm, nor of an "
            "Indexed Job of Kubernetes."
        )
    return shard.index, shard.count


def _workers(options: argparse.Namespace, work: WorkOptions) -> Workers:
    from mcmiad_monai.cohort.local import LocalWorkers, default_workers
    from mcmiad_monai.cohort.opening import open_work
    from mcmiad_monai.cohort.shards import cores

    opening = partial(open_work, options.bundle.absolute(), options.out.absolute(), work)
    count = options.workers or default_workers(cores(), work.device)
    if options.engine == "ray":
        from mcmiad_monai.cohort.ray_workers import RayWorkers

        if options.address and options.workers is None:
            raise ValueError("--address needs --workers N: how many processes of the cluster.")
        gpus = float((work.device or "").startswith("cuda"))
        each = options.each or 1
        return RayWorkers(opening, options.out, count, options.address, cores=each, gpus=gpus)
    shared = cores() if options.each is None else options.each * count
    return LocalWorkers(opening, options.out, count, cores=shared)


def _slurm(options: argparse.Namespace) -> int:
    """Plan the cohort and write its jobs; submit them if that is asked for."""
    from mcmiad_monai.cohort.identity import check_run
    from mcmiad_monai.cohort.ledger import Ledger, worker_name
    from mcmiad_monai.cohort.plan import make_plan
    from mcmiad_monai.cohort.slurm import submit, write_jobs
    from mcmiad_monai.files.room import prepare_output

    if options.workers is None:
        raise ValueError("--engine slurm needs --workers N, the number of tasks of the array.")
    _, identity, cases = _chosen(options)
    prepare_output(options.out, levels=0)
    check_run(options.out, identity)
    studies = make_plan(options.out, cases)
    _repeat(options, Ledger(options.out, worker_name("driver")), (0, 1))
    jobs = write_jobs(options.out, _words(options), options.workers, options=options.sbatch)
    logger.info("%d studies in %d tasks: %s", studies, options.workers, jobs.array)
    if options.submit:
        array, collect = submit(jobs)
        print(f"array {array}, collecting job {collect}")
    else:
        print(jobs.commands())
    return OK


def _words(options: argparse.Namespace) -> list[str]:
    """Words of this command, without those that say which engine runs it and how."""
    from mcmiad_monai.cohort.identity import absolute

    given = {
        "--bundle": absolute(options.bundle),
        "--out": absolute(options.out),
        "--attempts": options.attempts,
        "--keep": options.keep,
        "--image-name": options.image_name,
        "--modality": options.modality,
        "--max-voxels": options.max_voxels,
        "--device": options.of_workers,
        "--threads": options.each,
    }
    words = [absolute(source) for source in options.source]
    for option, value in given.items():
        words += [] if value is None else [f"{option}={value}"]
    words += [f"--query={key}={value}" for key, value in options.query]
    return words + [f"--set={key}={value!r}" for key, value in options.overrides]


class _Tally:
    """What has ended in this run: a progress bar, and the first reasons."""

    def __init__(self, studies: int, left: int, *, quiet: bool) -> None:
        from tqdm import tqdm

        self.reasons: list[str] = []
        hidden = quiet or None  # None: where nobody looks, as in the log of a job
        self.bar = tqdm(
            total=studies, initial=studies - left, desc="studies", unit=" studies", disable=hidden
        )

    def add(self, row: Row) -> None:
        """Count a study."""
        self.bar.update(1)
        if row.get("error") and len(self.reasons) < REASONS:
            self.reasons.append(f"study {row['case']} {row['status']}: {row['error']}")


def _collected(options: argparse.Namespace) -> int:
    """Write the table of results."""
    from mcmiad_monai.cohort.results import collect
    from mcmiad_monai.cohort.sql import database

    found = collect(options.out)
    with database() as connection:
        rows = connection.execute(
            'SELECT "case", status, error FROM read_parquet(?) WHERE error IS NOT NULL '
            "ORDER BY number LIMIT ?",
            [str(options.out / "results.parquet"), REASONS],
        ).fetchall()
    reasons = [f"study {case} {status}: {error}" for case, status, error in rows]
    return _ended(options, found, reasons)


def _ended(options: argparse.Namespace, counts: Mapping[str, int], reasons: list[str]) -> int:
    """Tell how it ended."""
    from mcmiad_monai.cohort.results import exit_code

    for reason in reasons:
        logger.error("%s", escaped(reason))
    logger.info("%s", escaped(_summary(options.out, counts)))
    if options.json:
        print_json({"out": str(options.out), "studies": sum(counts.values()), "counts": counts})
    return exit_code(counts)


def _summary(out: Path, counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{sum(counts.values())} studies: {shown}: {out}"


def _follow(out: Path) -> int:
    """Show how far a cohort is until all its studies have ended."""
    from mcmiad_monai.cohort.results import exit_code
    from mcmiad_monai.cohort.state import counts

    begun, first, told = time.monotonic(), None, ""
    while True:
        found = counts(out)
        open_ = found.get("pending", 0) + found.get("in progress", 0)
        first = open_ if first is None else first
        rate = (first - open_) / max(1e-9, time.monotonic() - begun)
        line = _summary(out, found)
        if line != told:
            print(escaped(line + (f" ({rate:.2f} studies/s)" if rate else "")), flush=True)
            told = line
        if not open_:
            return exit_code(found)
        time.sleep(FOLLOW)
