"""The manifest of the documentation: Kubernetes takes it, and its pods know their shards."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcmiad_monai.cli.parser import get_parser
from mcmiad_monai.cohort.shards import Shard, shard_of_task

MANIFEST = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "kubernetes-job.yaml"


@pytest.fixture
def job() -> Any:
    return yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))


@pytest.fixture
def container(job: Any) -> Any:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def test_manifest_fits_the_schema_of_kubernetes(job: Any) -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate, of the extra dev, has the schemas"
    )
    validate.validate(job, validate.latest_version(), strict=True)
    job["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(validate.ValidationError, match="completionsMode"):
        validate.validate(job, validate.latest_version(), strict=True)


def test_every_pod_has_its_shard(job: Any, container: Any) -> None:
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    given = {one["name"]: one["value"] for one in container["env"]}
    shards = [
        shard_of_task({**given, "JOB_COMPLETION_INDEX": str(index)})
        for index in range(spec["completions"])
    ]
    assert shards == [Shard(index, spec["completions"]) for index in range(spec["completions"])]


def test_mounts_are_volumes_and_the_command_uses_them(job: Any, container: Any) -> None:
    volumes = {one["name"] for one in job["spec"]["template"]["spec"]["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} == volumes
    (line,) = [x for x in container["args"][0].splitlines() if x.startswith("mcmiad ")]
    options = get_parser().parse_args(shlex.split(line.removesuffix("&"))[1:])
    places = {one["mountPath"]: one.get("readOnly", False) for one in container["volumeMounts"]}
    assert places[options.source[0]]
    assert places[str(options.bundle)]
    assert not places[str(options.out.parent)]
    assert options.engine == "shard"


def script_with(container: Any, folder: Path, command: str) -> subprocess.Popen[bytes]:
    """The script of the pod, with another command in the place of mcmiad."""
    tool = folder / "mcmiad"
    tool.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    tool.chmod(0o755)
    return subprocess.Popen(
        [*container["command"], *container["args"]],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
    )


@pytest.mark.parametrize(("code", "of_pod"), [(0, 0), (1, 0), (2, 2), (3, 0), (137, 137)])
def test_a_pod_fails_only_where_another_try_may_help(
    container: Any, tmp_path: Path, code: int, of_pod: int
) -> None:
    assert script_with(container, tmp_path, f"exit {code}").wait(30) == of_pod


def test_a_pod_that_is_stopped_lets_the_command_end_in_order(
    container: Any, tmp_path: Path
) -> None:
    waits = f"trap 'touch {tmp_path}/ended; exit 143' TERM; touch {tmp_path}/begun; sleep 30 & wait"
    pod = script_with(container, tmp_path, waits)
    until = time.monotonic() + 20
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(20) == 143
    assert (tmp_path / "ended").exists()
