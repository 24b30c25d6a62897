"""The part of a cohort that a task of a cluster does, and the cores that it has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


class ShardError(ValueError):
    """A shard that does not exist, or variables of a scheduler that name none."""


@dataclass(frozen=True)
class Shard:
    """Every `count`-th study of a plan, beginning with the study `index`.

    Parameters
    ----------
    index : int
        Number of the shard, from 0.
    count : int
        Number of shards of the cohort.

    Raises
    ------
    ShardError
        If there is no such shard.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ShardError(
                f"shard {self} does not exist: shards are counted from 0, so that the first is "
                f"0/{max(self.count, 1)} and the last {max(self.count, 1) - 1}/{max(self.count, 1)}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """The shard that ``i/n`` names.

    Raises
    ------
    ShardError
        If the text has another form, or there is no such shard.
    """
    if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
        raise ShardError(f"shard {text!r} is not of the form i/n, as in 0/8, the first of eight")
    index, count = text.split("/")
    return Shard(int(index), int(count))


def shard_of_task(environ: Mapping[str, str] = os.environ) -> Shard | None:
    """The shard of this task of a Slurm array or of a Kubernetes Indexed Job; None outside of one.

    Parameters
    ----------
    environ : mapping
        Variables of the process. Slurm sets those of an array. Kubernetes sets
        ``JOB_COMPLETION_INDEX``; the manifest has to pass ``JOB_COMPLETIONS``, the number of tasks.

    Raises
    ------
    ShardError
        If the indices of an array have gaps, or a variable is missing or not a number.
    """
    if "SLURM_ARRAY_TASK_ID" in environ:
        names = ("ID", "MIN", "MAX", "COUNT")
        task, first, last, count = (_number(environ, f"SLURM_ARRAY_TASK_{n}") for n in names)
        if last - first + 1 != count:
            raise ShardError(
                f"the Slurm array has {count} tasks with indices from {first} to {last}: some are "
                "missing, so that a task cannot tell which studies are its own. Use an array "
                "without gaps and steps, or say how many tasks there are in all, as in "
                f"--shard $SLURM_ARRAY_TASK_ID/{last + 1}"
            )
        return Shard(task - first, count)
    if "JOB_COMPLETION_INDEX" in environ:
        if "JOB_COMPLETIONS" not in environ:
            raise ShardError(
                "JOB_COMPLETION_INDEX is set, but not JOB_COMPLETIONS, the number of tasks, which "
                "Kubernetes does not give by itself. Pass the job's spec.completions under this "
                "name in env of the container"
            )
        return Shard(_number(environ, "JOB_COMPLETION_INDEX"), _number(environ, "JOB_COMPLETIONS"))
    return None


def cores(environ: Mapping[str, str] = os.environ) -> int:
    """The number of cores that this process may use, at least 1.

    It is the smallest of what Slurm gives a task, of the affinity of the process and of the CPU
    quota of its container.
    """
    from joblib import cpu_count

    usable = int(cpu_count())  # affinity and quota
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if name in environ:
            return max(1, min(usable, _number(environ, name)))
    return usable


def _number(environ: Mapping[str, str], name: str) -> int:
    """A variable that is a whole number, 0 or more."""
    text = environ.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        found = f"is {text!r}" if name in environ else "is not set"
        raise ShardError(f"the variable {name} {found}; a whole number is needed")
    return int(text)
