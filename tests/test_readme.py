"""The README is short, and its commands and its Python run as they are written.

Paths are those of small phantoms; settings that need a hub or hours are set otherwise, and nothing
else is. What the server of MONAI Label answers is tested in tests/monailabel.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mcmiad_monai.cli.parser import get_parser, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: For the command that trains.
QUICK = {
    "encoder_name": "test_efficientnet.r160_in1k",
    "weights": "random",
    "text_prior": "hashing",
    "max_epochs": "1",
    "batch_size": "8",
    "export": "False",
    "progress": "False",
    "slice_range": "[0.3,0.8]",
    "method#dim": "64",
    "method#rounds": "1",
}


def blocks(language: str, page: str = README) -> list[str]:
    """Code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.M | re.S)


def commands(program: str, page: str = README) -> list[list[str]]:
    """Commands of a page, without comments, their lines joined."""
    lines = "\n".join(blocks("sh", page)).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] == program]


@pytest.fixture(scope="module")
def places(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the paths of the page are in the test; the model is trained by the page's command."""
    folder = tmp_path_factory.mktemp("readme")
    study = min((cohort / "train").glob("*.nii.gz"))
    (folder / "new").mkdir()
    shutil.copy(study, folder / "new")
    found = {
        "/data/healthy": str(cohort / "train"),
        "/data/test": str(cohort / "datalist.json"),
        "/data/new": str(folder / "new"),
        "heatmaps": str(folder / "heatmaps"),
        "cohort": str(folder / "cohort"),
        "my_model": str(folder / "my_model"),
        "my_app": str(folder / "my_app"),
        "study.nii.gz": str(study),
    }
    (train,) = (line for line in commands("mcmiad") if line[1] == "train")
    quick = [word for item in QUICK.items() for word in ("--set", "=".join(item))]
    assert main([*placed(train, found)[1:], *quick]) == 0
    return found


def placed(words: list[str], places: dict[str, str]) -> list[str]:
    """Words with the paths of the test."""
    known = re.compile("|".join(map(re.escape, sorted(places, key=len, reverse=True))))
    return [known.sub(lambda match: places[match.group()], word) for word in words]


def heatmaps(places: dict[str, str]) -> list[Path]:
    """Heatmaps that were written, and no more: they are removed."""
    found = list(Path(places["heatmaps"]).rglob("*_heatmap.nii.gz"))
    shutil.rmtree(places["heatmaps"], ignore_errors=True)
    return found


def test_readme_is_short_and_its_picture_is_small() -> None:
    assert len(README.splitlines()) <= 110
    picture = ROOT / "docs" / "images" / "montage.png"
    assert picture.stat().st_size <= 400_000
    with Image.open(picture) as image:
        assert image.width <= 1200


def test_links_lead_to_files_and_headings() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) > 5
    for link in links:
        path, _, heading = link.partition("#")
        assert (ROOT / path).exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)", (ROOT / path).read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^a-z0-9]+", "-", title.lower()) for title in titles]


def test_python_of_the_page_runs(
    places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line]) == 5
    (code,) = placed([code], places)
    exec(compile(code, "README.md", "exec"), {})
    score, threshold, anomalous = capsys.readouterr().out.split()
    assert float(score) > 0
    assert (threshold, anomalous) == ("None", "None")  # of too few patients
    assert len(heatmaps(places)) == 1


def test_commands_of_the_page_run(places: dict[str, str]) -> None:
    lines = [placed(line, places)[1:] for line in commands("mcmiad")]
    archive = [line for line in lines if "--send" in line or line[0] == "watch"]
    assert [line[0] for line in archive] == ["infer", "watch"]
    for line in archive:  # there is none
        get_parser().parse_args(line)
    local = [line for line in lines if line not in archive]
    names = ["train", "infer", "evaluate", "screen", "report", "label-app"]
    assert [line[0] for line in local] == names
    for line in local[1:]:
        assert main(line) == 0
    assert len(heatmaps(places)) == 1
    assert (Path(places["cohort"]) / "index.html").is_file()
    assert (Path(places["my_model"]) / "eval" / "metrics.json").is_file()
    assert (Path(places["my_app"]) / "model" / "my_model" / "models" / "model.pt").is_file()
    (server,) = commands("monailabel")
    assert {"start_server", "--app", "--studies", "--host"} <= set(server)


def test_command_of_monai_runs_from_another_folder(
    places: dict[str, str], forked: Any, tmp_path: Path
) -> None:
    (line,) = commands("python")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = forked.run(placed(line, places)[1:], tmp_path, environment)
    assert done.returncode == 0, done
    assert len(heatmaps(places)) == 1
