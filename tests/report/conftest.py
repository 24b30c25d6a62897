"""A small cohort with every kind of study, its report, and a browser for the pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, chromium
from made_results import (
    HOSTILE,
    LONG,
    REASON,
    RIGHT_TO_LEFT,
    oblique_affine,
    sheared_affine,
    write_image,
    write_picture,
    write_result,
    write_scores,
)

from mcmiad_monai.report.rows import read_cohort
from mcmiad_monai.report.write import write_report


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder of the results, and the source of the studies; read them, do not write into them."""
    root = tmp_path_factory.mktemp("made")
    source, out = root / "source", root / "results"
    scores = []
    heights = {"tumour": 6.0, HOSTILE: 4.0, RIGHT_TO_LEFT: 3.0, LONG: 2.5, "quiet": 0.2}
    for seed, (case, height) in enumerate(heights.items()):
        image = write_image(source / f"{case}.nii.gz", oblique_affine(), seed=seed)
        scores.append(write_result(out, case, image, height=height))
    image = write_image(source / "tilted.nii.gz", sheared_affine(), seed=9)
    scores.append(write_result(out, "tilted", image, height=3.5))
    picture = write_picture(source / "picture.png")
    scores.append(write_result(out, "picture", picture, at=(45, 10, 0), height=2.0))
    odd = write_image(source / "odd.nii.gz", oblique_affine(), seed=11)
    odd_scores = write_result(out, "odd", odd, height=0.1)
    odd_scores["warnings"] = ["out_of_distribution"]
    write_scores(out, [*scores, odd_scores], {"broken": REASON})
    return out, source


@pytest.fixture(scope="session")
def report(results: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the report of that cohort."""
    out, source = results
    folder = tmp_path_factory.mktemp("report")
    write_report(read_cohort(out), folder, sources=[source])
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; without one, the tests that need it are skipped."""
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
