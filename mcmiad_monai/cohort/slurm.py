"""A cohort as jobs of Slurm: an array, of which each task does a shard, and one that collects."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mcmiad_monai.errors import escaped
from mcmiad_monai.files.writing import replace_atomically

#: Folder of the job files and of what the jobs print, below that of the cohort.
FOLDER = "slurm"
#: Options of sbatch that the job files set themselves.
OWN = frozenset({"array", "chdir", "dependency", "job-name", "open-mode", "output", "wrap"})
#: What an option and its value may be in a line ``#SBATCH --option=value``, where sbatch has
#: quotes of its own.
OPTION, VALUE = re.compile(r"[a-z][a-z-]*"), re.compile(r"[\w.,:;/=@%+*&|!()\[\]~^-]+", re.ASCII)

HEADER = """\
#!/bin/sh
# {what}
# Written by mcmiad screen. Submit it in this folder: {folder}
#SBATCH --job-name={name}
#SBATCH --output={log}.log
#SBATCH --open-mode=append
{directives}set -eu
"""
ARRAY = """\
# at the end of the time, or by scancel, the command drops its study and ends in order
trap : TERM
code=0
{command} \\
    --engine shard --shard "$SLURM_ARRAY_TASK_ID/{workers}" || code=$?
# 1: studies were refused, as the table tells; 3: other shards have studies left
[ "$code" -ne 1 ] && [ "$code" -ne 3 ] || code=0
exit "$code"
"""
COLLECT = """\
exec {command}
"""


class SlurmError(RuntimeError):
    """Slurm is not there, or does not take a job."""


@dataclass(frozen=True)
class Jobs:
    """The files of the two jobs."""

    array: Path
    collect: Path

    def commands(self) -> str:
        """What submits them, for a shell."""
        folder, array, collect = (
            shlex.quote(str(p)) for p in (self.array.parent, self.array.name, self.collect.name)
        )
        return (
            f"cd {folder}\njob=$(sbatch --parsable {array})\n"
            f'sbatch --dependency=afterany:"${{job%%;*}}" {collect}'
        )


def write_jobs(
    out: str | Path,
    screen: Sequence[str],
    workers: int,
    *,
    options: Sequence[tuple[str, str]] = (),
) -> Jobs:
    """Write both job files.

    Parameters
    ----------
    out : path
        Folder of the cohort, which all nodes see under this path.
    screen : sequence of str
        Words of the command behind ``mcmiad screen``, without those of the engine; paths are
        absolute.
    workers : int
        Tasks of the array.
    options : sequence of (str, str)
        Options of sbatch for both jobs, e.g. ``("partition", "long")``.

    Returns
    -------
    Jobs

    Raises
    ------
    SlurmError
        If an option cannot be in a job file.
    """
    folder = Path(out).absolute() / FOLDER
    directives = "".join(_directive(*option) for option in options)
    program = [sys.executable, "-m", "mcmiad_monai.cli", "screen"]
    jobs = Jobs(folder / "array.sbatch", folder / "collect.sbatch")
    array = HEADER.format(
        what=f"{workers} tasks, each with its share of the studies; submit it again to go on",
        folder=escaped(str(folder)),
        name="mcmiad-screen",
        log="array-%a",
        # a task whose machine is lost starts again elsewhere
        directives=f"#SBATCH --array=0-{workers - 1}\n#SBATCH --requeue\n{directives}",
    ) + ARRAY.format(command=shlex.join([*program, *screen]), workers=workers)
    collect = HEADER.format(
        what="The table of results, when all tasks of array.sbatch have ended",
        folder=escaped(str(folder)),
        name="mcmiad-collect",
        log="collect",
        directives=directives,
    ) + COLLECT.format(command=shlex.join([*program, "--collect", "--out", str(folder.parent)]))
    for path, content in ((jobs.array, array), (jobs.collect, collect)):
        replace_atomically(path, partial(_write, content))
    return jobs


def _write(content: str, path: Path) -> None:
    path.write_bytes(os.fsencode(content))  # a path may be no UTF-8


def submit(jobs: Jobs) -> tuple[str, str]:
    """Submit both jobs; returns their numbers.

    Raises
    ------
    SlurmError
        If there is no Slurm, or it refuses one of them; the array is taken back with the other.
    """
    array = _sbatch(jobs.array)
    try:
        return array, _sbatch(jobs.collect, f"--dependency=afterany:{array}")
    except SlurmError:
        subprocess.run(["scancel", array], check=False)
        raise


def _sbatch(file: Path, *options: str) -> str:
    program = shutil.which("sbatch")
    if program is None:
        raise SlurmError(
            f"sbatch is not installed here. Submit {file} on a machine of the Slurm cluster, "
            "or leave out --submit"
        )
    command = [program, "--parsable", *options, file.name]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, check=False)
    if done.returncode:
        said = escaped(os.fsdecode(done.stderr or done.stdout).strip())
        raise SlurmError(f"Slurm does not take {file}: {said}")
    return os.fsdecode(done.stdout).strip().split(";")[0]  # "number;cluster"


def _directive(option: str, value: str) -> str:
    option = option.removeprefix("--")
    if option in OWN:
        raise SlurmError(f"the option {option} of sbatch is set by mcmiad screen; leave it out")
    if not OPTION.fullmatch(option) or not VALUE.fullmatch(value):
        raise SlurmError(
            f"{f'{option}={value}'!r} is no option of sbatch of the form partition=long. Write "
            "others into the files that mcmiad screen --engine slurm makes, and submit them by hand"
        )
    return f"#SBATCH --{option}={value}\n"
