from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import mcmiad_monai
from mcmiad_monai.provenance import produced_with, software

PACKAGE = Path(mcmiad_monai.__file__).parent
SCRIPT = "from mcmiad_monai.provenance import git_revision; print(git_revision())"
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def revision_seen_from(folder: Path) -> str:
    """What a copy of the package in a folder says of itself."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, check=True, capture_output=True, text=True
    )
    return run.stdout.strip()


def copy_package(folder: Path) -> Path:
    """The two files that the question needs, as a package of its own."""
    target = folder / "mcmiad_monai"
    target.mkdir(parents=True)
    for name in ("__init__.py", "provenance.py"):
        shutil.copy(PACKAGE / name, target / name)
    return target


def test_versions_are_those_installed() -> None:
    assert software()["torch"] == version("torch")
    assert software()["mcmiad_monai"] == mcmiad_monai.__version__
    assert json.loads(json.dumps(produced_with()))["software"] == software()


@needs_git
def test_revision_is_that_of_the_checkout_and_tells_of_changes(tmp_path: Path) -> None:
    package = copy_package(tmp_path / "checkout")
    git(tmp_path / "checkout", "init", "-q")
    git(tmp_path / "checkout", "add", ".")
    git(tmp_path / "checkout", "commit", "-qm", "first")
    head = git(tmp_path / "checkout", "rev-parse", "HEAD")
    assert revision_seen_from(package.parent) == head
    with (package / "provenance.py").open("a") as file:
        file.write("# changed\n")
    assert revision_seen_from(package.parent) == f"{head}+changes"


@needs_git
def test_copy_installed_inside_another_repository_has_no_revision(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "other.txt").write_text("x")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-qm", "other")
    package = copy_package(tmp_path / "venv" / "lib")
    assert revision_seen_from(package.parent) == "None"


def test_copy_outside_any_repository_has_no_revision(tmp_path: Path) -> None:
    assert revision_seen_from(copy_package(tmp_path / "lib").parent) == "None"
