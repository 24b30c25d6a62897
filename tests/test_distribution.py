"""What an installation holds: a forgotten subpackage is dropped from a wheel without a word."""

from __future__ import annotations

import configparser
import json
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mcmiad_monai.version import __version__

ROOT = Path(__file__).resolve().parents[1]
RENDER = ROOT / "bundles" / "source" / "render.py"
FOLDERS = {"mcmiad_monai": "mcmiad_monai", "transforms": "mcmiad_monai.transforms"}


def test_declared_packages_are_those_on_disk() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = set(config["options"]["packages"].split())
    found = {"mcmiad_monai.bundles"}
    for folder, package in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *below)))
    assert declared == found


def run_python(code: str, folder: Path, *arguments: object) -> str:
    """What a script prints that runs in a folder, which is looked in first for modules."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source") / "project"
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "build", "*.egg-info", "__pycache__", "demo_output", "tests", ".*_cache"
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(out)]
    built = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_every_module_and_the_bundle(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in FOLDERS.items():
        for module in (ROOT / folder).rglob("*.py"):
            inside = package.replace(".", "/") / module.relative_to(ROOT / folder)
            assert str(inside) in names
    for file in runpy.run_path(str(RENDER))["render"]():
        assert f"mcmiad_monai/bundles/{file.relative_to(ROOT / 'bundles')}" in names
    assert "mcmiad_monai/py.typed" in names
    assert "mcmiad_monai/research/bmad/brain_patients.txt" in names
    assert not [n for n in names if n.split("/")[0] in ("tests", "benchmarks", "transforms")]
    assert not [n for n in names if n.startswith("mcmiad_monai/bundles/source")]
    assert any(n.endswith("licenses/LICENSE") or n.endswith("/LICENSE") for n in names)


def test_wheel_runs_from_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import mcmiad_monai, mcmiad_monai.transforms\n"
        "assert mcmiad_monai.__file__.startswith(sys.argv[1]), mcmiad_monai.__file__\n"
        "assert mcmiad_monai.transforms.__file__.startswith(sys.argv[1])\n"
        "from mcmiad_monai.bundle import copy_bundle\n"
        "print(copy_bundle('brain_mri_anomaly', sys.argv[2]))\n"
    )
    run_python(code, tmp_path, target, tmp_path / "copy")
    assert (tmp_path / "copy" / "configs" / "train.yaml").is_file()


def test_clone_that_is_not_installed_runs_from_its_own_folder(tmp_path: Path) -> None:
    for folder in (*FOLDERS, "bundles"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pt", "eval")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    code = (
        "import mcmiad_monai.transforms\n"
        "from mcmiad_monai.bundle import shipped_bundles\n"
        "print(mcmiad_monai.transforms.__file__, *shipped_bundles().values())\n"
    )
    found = run_python(code, tmp_path).split()
    assert len(found) == 5
    assert all(path.startswith(str(tmp_path)) for path in found)


def test_version_of_bundle_metadata_is_that_of_the_package() -> None:
    for metadata in (ROOT / "bundles").glob("*_anomaly/configs/metadata.json"):
        content = json.loads(metadata.read_text())
        assert content["version"] == __version__
        assert content["version"] in content["changelog"]


def test_bundles_are_what_their_source_renders() -> None:
    rendered: dict[Path, str] = runpy.run_path(str(RENDER))["render"]()
    for path, text in rendered.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `make bundles`"
    for root in {path.parents[1] for path in rendered if path.parent.name == "configs"}:
        written = {p for p in root.rglob("*.*") if "eval" not in p.parts and p.suffix != ".pt"}
        assert written <= set(rendered), "edit bundles/source, not the bundles"
