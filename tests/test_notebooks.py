"""Notebooks run from top to bottom, on small studies, and leave pictures worth looking at."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
TRANSFORMS = "a_study_through_the_transforms"
TRAINING = "train_small_and_look_at_heatmaps"
LABEL = "from_a_bundle_to_monai_label"
NOTEBOOKS = (TRANSFORMS, LABEL, TRAINING)

#: What the tests make smaller; each of these lines must be there.
SMALLER: dict[str, dict[str, str]] = {
    TRANSFORMS: {},
    TRAINING: {
        "SHAPE = (64, 74, 14)": "SHAPE = (48, 56, 10)",
        "TRAIN, VAL, TEST_NORMAL, TEST_LESION = 16, 14, 4, 10": (
            "TRAIN, VAL, TEST_NORMAL, TEST_LESION = 4, 6, 1, 2"
        ),
        "EPOCHS = 4": "EPOCHS = 2",
        "FALSE_POSITIVE_RATE = 0.1": "FALSE_POSITIVE_RATE = 0.3",
    },
    LABEL: {
        "SHAPE = (64, 74, 14)": "SHAPE = (48, 56, 10)",
        "TRAIN, VAL = 10, 6": "TRAIN, VAL = 4, 4",
        "EPOCHS = 3": "EPOCHS = 2",
    },
}
PICTURES = {
    TRANSFORMS: {
        "1_stored",
        "2_oriented",
        "3_normalised",
        "4_slices",
        "5_restored",
        "6_other_modalities",
    },
    TRAINING: {"brain_montage", "brain_scores"},
    LABEL: {"answers"},
}

Names = dict[str, Any]


def cells(name: str, kind: str | None = None) -> list[dict[str, Any]]:
    """Cells of a notebook, of one kind or all."""
    found = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def code_of(name: str) -> str:
    """Code of a notebook, with the small sizes."""
    code = "\n\n".join("".join(cell["source"]) for cell in cells(name, "code"))
    for full, small in SMALLER[name].items():
        assert code.count(f"\n{full}") == 1, f"{name} has no line {full!r}"
        code = code.replace(f"\n{full}", f"\n{small}")
    return code


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Names]]:
    """Execute a notebook without a display, and return the names that it has defined."""
    names: Names = {"__name__": "__main__"}
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    mpl.use("Agg", force=True)

    def execute(name: str) -> Names:
        exec(compile(code_of(name), f"{name}.ipynb", "exec"), names)
        # everything went to the temporary folder, but for what measures the tests' coverage
        assert [p.name for p in here.iterdir() if not p.name.startswith(".coverage")] == []
        return names

    yield execute
    logging.disable(logging.NOTSET)
    if "server" in names:
        names["server"].kill()
    if "plt" in names:
        names["plt"].close("all")


def pixels(path: Path) -> NDArray[np.int16]:
    """A picture as (H, W, 3)."""
    return np.asarray(Image.open(path).convert("RGB")).astype(np.int16)


def check_pictures(folder: Path, name: str) -> None:
    """All pictures are there, none is blank, and each has some colour beside its greys."""
    assert {path.stem for path in folder.glob("*.png")} == PICTURES[name]
    for path in folder.glob("*.png"):
        picture = pixels(path)
        background = picture[0, 0]
        drawn = (np.abs(picture - background) > 30).any(axis=2)
        assert min(picture.shape[:2]) > 300, path.name
        assert drawn.mean() > 0.1, f"{path.name} is almost blank"
        assert len(np.unique(picture.sum(axis=2))) > 50, path.name
        coloured = picture.max(axis=2) - picture.min(axis=2) > 60
        assert coloured.mean() > 0.0005, f"{path.name} shows neither heat nor marks"


def warm(path: Path) -> float:
    """Share of a picture that has the colour of much heat: yellow to white-yellow."""
    red, green, blue = np.moveaxis(pixels(path), 2, 0)
    return float(((red > 220) & (green > 130) & (red - blue > 80)).mean())


def test_transforms_keep_the_lesion_in_its_place_and_refuse_bad_files(
    run: Callable[[str], Names],
) -> None:
    names = run(TRANSFORMS)
    check_pictures(names["WORK"], TRANSFORMS)
    assert set(names["places"]) == {"file", "loaded", "oriented", "network slices", "restored"}
    for place in names["places"].values():
        np.testing.assert_allclose(place, names["lesion_mm"], atol=0.3)  # mm
    assert names["tilt"].min() > 5  # the study is oblique
    assert names["lesion"][names["peak"]]
    messages = names["messages"]
    assert "4 dimensions" in messages["several_time_points"]
    assert "label map" in messages["label_map"]
    assert "NaN" in messages["holes"]
    assert "could not be read" in messages["cut_short"]
    assert "seems to be CT" in messages["liver_ct"]


def test_training_puts_heat_on_the_lesion(run: Callable[[str], Names]) -> None:
    names = run(TRAINING)
    check_pictures(names["WORK"], TRAINING)
    assert names["report"]["metrics"]["pixel_auroc"] > 0.9
    assert warm(names["WORK"] / "brain_montage.png") > 0.002
    voxels = {kind: np.concatenate(values) for kind, values in names["voxels"].items()}
    assert np.median(voxels["lesion"]) > 1 > np.quantile(voxels["normal"], 0.9)
    assert np.isfinite(names["thresholds"].slice_threshold)  # its line is in the histogram
    assert names["slices"]["lesion"]
    assert names["slices"]["normal"]


@pytest.mark.skipif(
    find_spec("monailabel") is None,
    reason="MONAI Label is not installed; it comes with the extra `label`",
)
def test_server_answers_and_stops(run: Callable[[str], Names]) -> None:
    names = run(LABEL)
    check_pictures(names["WORK"], LABEL)
    assert warm(names["WORK"] / "answers.png") > 0.005
    lesion, heat = names["lesion"] > 0, names["shown"]["heatmap"]
    assert heat[lesion].mean() > 3 * heat[(heat > 0) & ~lesion].mean()
    assert names["scores"]["brain_mass"]["volume_score"] > 2
    assert names["refused"].status_code == 400
    assert "seems to be CT" in names["refused"].json()["detail"]
    assert names["server"].poll() is not None


def test_without_monai_label_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = "".join(cells(LABEL, "code")[0]["source"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="install the extra `label`"):
        exec(compile(first, "first cell", "exec"), {})


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_short_and_stripped(name: str) -> None:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 4)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert 10 <= len(notebook["cells"]) <= 18
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert "".join(cell["source"]).isascii()
        else:
            assert set(cell) == {"cell_type", "metadata", "source"}
