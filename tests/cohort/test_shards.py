"""Shards of a cohort: said by hand, by Slurm and by Kubernetes; and the cores of a task."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mcmiad_monai.cohort.shards import Shard, ShardError, cores, parse_shard, shard_of_task


def array(task: int, first: int = 0, last: int = 3, count: int | None = None) -> dict[str, str]:
    """Variables that Slurm sets in a task of an array."""
    count = last - first + 1 if count is None else count
    numbers = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items()}


def test_shards_share_a_plan_without_gap_or_overlap() -> None:
    shards = [parse_shard(f"{index}/3") for index in range(3)]
    parts = [list(range(10))[s.index :: s.count] for s in shards]
    assert sorted(number for part in parts for number in part) == list(range(10))
    assert [str(s) for s in shards] == ["0/3", "1/3", "2/3"]


@pytest.mark.parametrize("text", ["3/3", "1/0", "7/2"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ShardError, match=rf"shard {text} does not exist: .* counted from 0"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["", "1", "1/2/3", "-1/3", "a/3", "1 /3", "1/3\n", "٣/٤"])
def test_a_shard_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ShardError, match="not of the form i/n"):
        parse_shard(text)


def test_a_task_of_a_slurm_array_knows_its_shard() -> None:
    assert shard_of_task(array(2)) == Shard(2, 4)
    assert shard_of_task(array(1, first=1, last=4)) == Shard(0, 4)
    assert shard_of_task(array(5, first=5, last=5)) == Shard(0, 1)


@pytest.mark.parametrize("variables", [array(2, 0, 6, count=4), array(7, 3, 7, count=2)])
def test_an_array_with_gaps_is_refused(variables: dict[str, str]) -> None:
    """A step, or some tasks submitted again: which studies are its own is not known."""
    with pytest.raises(ShardError, match=r"some are missing.*without gaps and steps"):
        shard_of_task(variables)


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "4294967294000"])
def test_what_is_no_number_is_refused_by_the_name_of_its_variable(value: str) -> None:
    with pytest.raises(ShardError, match=f"SLURM_ARRAY_TASK_ID is '{value}'"):
        shard_of_task({**array(1), "SLURM_ARRAY_TASK_ID": value})
    with pytest.raises(ShardError, match="SLURM_ARRAY_TASK_COUNT is not set"):
        shard_of_task({k: v for k, v in array(1).items() if not k.endswith("COUNT")})


def test_a_pod_of_an_indexed_job_knows_its_shard() -> None:
    assert shard_of_task({"JOB_COMPLETION_INDEX": "7", "JOB_COMPLETIONS": "8"}) == Shard(7, 8)
    with pytest.raises(ShardError, match="does not exist"):
        shard_of_task({"JOB_COMPLETION_INDEX": "8", "JOB_COMPLETIONS": "8"})


def test_a_manifest_without_the_number_of_tasks_is_refused() -> None:
    with pytest.raises(ShardError, match=r"not JOB_COMPLETIONS.*spec\.completions"):
        shard_of_task({"JOB_COMPLETION_INDEX": "0"})


def test_no_scheduler_no_shard() -> None:
    assert shard_of_task({"HOME": "/root"}) is None


def test_cores_are_those_of_the_task() -> None:
    here = cores({})
    assert 1 <= here <= len(os.sched_getaffinity(0))
    assert cores({"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "64"}) == 1
    assert cores({"SLURM_CPUS_ON_NODE": "1"}) == 1
    assert cores({"SLURM_CPUS_PER_TASK": "4096"}) == here
    with pytest.raises(ShardError, match="SLURM_CPUS_PER_TASK is 'all'"):
        cores({"SLURM_CPUS_PER_TASK": "all"})


def test_cores_follow_the_affinity_of_the_process() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from mcmiad_monai.cohort.shards import cores; print(cores({}))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "1"
