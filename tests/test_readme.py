"""The commands of the README, taken from the page and run in its order.

Paths are those of phantoms, and what would need a hub or hours (pretrained weights, CLIP, 100
epochs) is set otherwise; nothing else is. What starts a server is run by tests/monailabel.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: For commands that train.
QUICK = {
    "encoder_name": "test_efficientnet.r160_in1k",
    "weights": "random",
    "text_prior": "hashing",
    "max_epochs": "1",
    "batch_size": "8",
    "slice_range": "[0.3,0.8]",
    "network_def#dim": "64",
    "network_def#rounds": "1",
}


def commands(section: str) -> list[list[str]]:
    """Commands in the indented blocks of a section, with their lines joined."""
    body = README.split(f"{section}\n", 1)[1]
    body = re.split(r"\n##+ ", body, maxsplit=1)[0]
    lines = "\n".join(line[4:] for line in body.splitlines() if line.startswith("    "))
    return [shlex.split(line) for line in lines.replace("\\\n", " ").splitlines()]


def prepared(command: list[str], places: dict[str, str]) -> list[str]:
    """The command with paths of the test and quick settings where it trains."""
    known = re.compile("|".join(map(re.escape, sorted(places, key=len, reverse=True))))
    line = [known.sub(lambda match: places[match.group()], word) for word in command]
    trains = "train" in line[:2] or "train.yaml" in " ".join(line)
    if trains and "evaluate.yaml" not in " ".join(line):
        for key, value in QUICK.items():
            line += ["--set", f"{key}={value}"] if line[0] == "mcmiad" else [f"--{key}", value]
    if line[0] == "torchrun":
        return ["-m", "torch.distributed.run", *line[1:]]
    if line[0] == "mcmiad":
        return ["-m", "mcmiad_monai.cli", *line[1:]]
    assert line[0] == "python", f"no program of this project: {shlex.join(line)}"
    return line[1:]


@pytest.fixture(scope="module")
def places(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the paths of the page are in the test."""
    folder = tmp_path_factory.mktemp("readme")
    studies = folder / "new"
    studies.mkdir()
    for path in sorted((cohort / "train").glob("*.nii.gz"))[:1]:
        shutil.copy(path, studies)
    return {
        "/data/healthy": str(cohort / "train"),
        "/data/test": str(cohort / "datalist.json"),
        "/data/new": str(studies),
        "/data/heatmaps": str(folder / "heatmaps"),
        "my_model": str(folder / "my_model"),
        "bundles/metadata_schema.json": str(ROOT / "bundles/metadata_schema.json"),
        "here": str(folder),
    }


@pytest.mark.parametrize("section", ["## Use it", "### With MONAI"])
def test_commands_of_the_page_run_as_they_are_written(
    section: str, places: dict[str, str], forked: Any
) -> None:
    listed = [c for c in commands(section) if c[0] != "pip"]
    assert len(listed) >= 2
    if section != "## Use it":  # there the model is exported, which takes longer than the rest
        listed = [[*c, "--export", "False"] if "train.yaml" in " ".join(c) else c for c in listed]
    if section != "## Use it" and not Path(places["my_model"]).exists():
        for command in commands("## Use it")[1:2]:
            run(prepared(command, places), places["here"], forked)
    for command in listed:
        run(prepared(command, places), places["here"], forked)
    assert list(Path(places["/data/heatmaps"]).rglob("*_heatmap.nii.gz"))
    assert (Path(places["my_model"]) / "models" / "model.pt").is_file()


def run(line: list[str], folder: str, forked: Any) -> None:
    """Run a command in a folder that is neither the checkout nor a bundle."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = forked.run(line, Path(folder), environment)
    assert done.returncode == 0, f"{shlex.join(line)}\n{done.told[-3000:]}"


def test_export_named_in_the_text_is_a_command(places: dict[str, str], forked: Any) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    told = re.findall(r"`(mcmiad export[^`]*)`", README.replace("\n", " "))
    assert told
    if not Path(places["my_model"]).exists():
        run(prepared(commands("## Use it")[1], places), places["here"], forked)
    for command in told:
        run(prepared(shlex.split(command), places), places["here"], forked)
    assert (Path(places["here"]) / "model.onnx").is_file()


def test_app_of_the_page_is_laid_out_and_served_as_the_tests_of_the_server_do() -> None:
    listed = commands("### In 3D Slicer and OHIF")
    assert listed[1][:2] == ["mcmiad", "label-app"]
    assert listed[2][:2] == ["monailabel", "start_server"]
    assert {"--app", "--studies", "--host"} <= set(listed[2])
