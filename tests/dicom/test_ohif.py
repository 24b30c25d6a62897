"""OHIF shows segmentation, map and report over the series, where the heat is."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import PATIENCE, Browser, chromium
from dicom_series import STUDY, write_series
from known_heat import predicted
from monai.data import MetaTensor
from oblique import oblique_affine
from ohif_viewer import missing_ohif, ohif
from orthanc_server import OrthancServer, missing_orthanc
from PIL import Image

from mcmiad_monai.dicom.objects import write_objects
from mcmiad_monai.dicom.source import read_source
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.transforms import load_volume

pytestmark = pytest.mark.skipif(
    bool(missing_ohif() or missing_orthanc()), reason=str(missing_ohif() or missing_orthanc())
)

SHAPE = (64, 48, 9)
#: Voxel in the middle of the heat, which is a cylinder through slices 3 to 5.
MIDDLE, RADIUS = (16, 32, 4), 6
#: Run before OHIF: a tour for new users would take the clicks, and one of its files asks for this
#: name of Node.js where scripts arrive in another order than usual, and OHIF then stays empty.
BEFORE_OHIF = (
    "localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']));"
    "globalThis.__filename = location.href;"
)
#: Modalities of what OHIF has in its viewports; JavaScript.
SHOWN = (
    "[...services.viewportGridService.getState().viewports.values()]"
    ".flatMap((v) => v.displaySetInstanceUIDs)"
    ".map((uid) => services.displaySetService.getDisplaySetByUID(uid)?.Modality)"
)
#: Difference of colour channels from which a pixel is coloured, and not a grey of the image.
COLOUR = 40


def square_affine() -> np.ndarray:
    """Oblique, with pixels of 1 mm by 1 mm, which the report needs to have a point on an image."""
    affine = oblique_affine("LPS")
    affine[:3, :2] /= np.linalg.norm(affine[:3, :2], axis=0)
    return affine


def hot(series: Path) -> Prediction:
    """A prediction with a hot cylinder beside the middle of the image."""
    image = load_volume(series)
    x, y, z = np.indices(SHAPE)
    distance = np.hypot(x - MIDDLE[0], y - MIDDLE[1])
    heat = np.where((distance < RADIUS) & (abs(z - MIDDLE[2]) <= 1), 3.0 - 0.1 * distance, 0.0)
    heat[MIDDLE] = 4.0
    prediction = predicted(
        MetaTensor(torch.as_tensor(heat[None], dtype=torch.float32), affine=image.affine), image
    )
    known = {"volume_score": 1.75, "volume_threshold": 1.25, "anomalous": True}
    return replace(prediction, scores={**prediction.scores, **known})


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, str, Prediction]]:
    """A browser, the address of a study with its objects in OHIF, and the prediction."""
    folder = tmp_path_factory.mktemp("ohif")
    x, y, z = np.indices(SHAPE)
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    values = np.where(np.hypot((x - 32) / 28, (y - 24) / 20) < 1, 100 + 5 * z, -900) + noise
    series = write_series(folder / "series", values.astype(np.int16), square_affine())
    prediction = hot(series)
    files = write_objects(prediction, read_source(series), ["seg", "pmap", "sr"], folder / "out")
    with (
        OrthancServer(folder / "orthanc") as archive,
        ohif(archive.url) as address,
        chromium(folder / "profile") as browser,
    ):
        archive.send(*sorted(series.iterdir()), *files)
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=BEFORE_OHIF)
        yield browser, f"{address}/viewer?StudyInstanceUIDs={STUDY}", prediction


def open_series(browser: Browser, address: str, modality: str) -> None:
    """Open the study, and double-click the series of a modality, as a user does."""
    browser.visit(address)
    listed = "[data-cy^='study-browser-thumbnail']"
    browser.wait_for(f'document.querySelectorAll("{listed}").length >= 4')
    browser.wait_for(f"{SHOWN}.includes('CT')")
    x, y = browser.ask(
        f'(() => {{ const item = [...document.querySelectorAll("{listed}")].find((e) =>'
        f" e.textContent.trim().startsWith({modality!r}));"
        "item.scrollIntoView({block: 'center'}); const b = item.getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    browser.click_at(x, y, times=2)
    browser.wait_for(f"{SHOWN}.includes({modality!r})")


def on_screen(browser: Browser, prediction: Prediction, voxel: tuple[int, int, int]) -> Any:
    """Where OHIF draws a voxel, in pixels of the window; None while it draws no image."""
    ras = prediction.heatmap.affine.numpy() @ (*voxel, 1)
    lps = [float(v) for v in ras[:3] * (-1, -1, 1)]
    return browser.ask(
        "(() => { const grid = services.viewportGridService.getState();"
        "const shown = services.cornerstoneViewportService"
        ".getCornerstoneViewport(grid.activeViewportId);"
        "if (!shown || !shown.getCurrentImageId?.()) return null;"
        f"const [x, y] = shown.worldToCanvas({lps});"
        "const b = shown.element.getBoundingClientRect(); return [b.x + x, b.y + y]; })()"
    )


def colours_at(browser: Browser, prediction: Prediction, voxel: tuple[int, int, int]) -> Any:
    """Pixels (5, 5, 3) of the window about a voxel, as signed numbers."""
    place = on_screen(browser, prediction, voxel)
    if place is None:
        return np.zeros((5, 5, 3), int)
    column, row = (round(v) for v in place)
    png = base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    return pixels[row - 2 : row + 3, column - 2 : column + 3]


def is_coloured(pixels: np.ndarray) -> bool:
    return bool((np.ptp(pixels, axis=2) > COLOUR).any())


def wait_for_colour(browser: Browser, prediction: Prediction, voxel: tuple[int, int, int]) -> Any:
    """Wait until a voxel is drawn in colour."""
    end = time.monotonic() + PATIENCE
    while not is_coloured(pixels := colours_at(browser, prediction, voxel)):
        assert time.monotonic() < end, f"no colour; problems: {browser.problems}"
        time.sleep(0.5)
    return pixels


#: Voxels as far from the middle of the image, in each other direction, which are not hot.
MIRRORED = [(47, 32, 4), (16, 15, 4), (47, 15, 4)]


@pytest.mark.parametrize("modality", ["SEG", "PMAP"])
def test_ohif_lays_objects_over_the_series_where_the_heat_is(viewer: Any, modality: str) -> None:
    browser, address, prediction = viewer
    open_series(browser, address, modality)
    wait_for_colour(browser, prediction, MIDDLE)
    assert not any(is_coloured(colours_at(browser, prediction, v)) for v in MIRRORED)


def test_ohif_shows_the_report_on_the_image_of_the_hottest_point(viewer: Any) -> None:
    browser, address, prediction = viewer
    open_series(browser, address, "SR")
    pixels = wait_for_colour(browser, prediction, MIDDLE)
    red, green, blue = pixels.reshape(-1, 3)[np.ptp(pixels, axis=2).argmax()]
    assert green > red + COLOUR, (red, green, blue)
    assert green > blue + COLOUR, (red, green, blue)
    report = "services.displaySetService.getActiveDisplaySets().find((d) => d.Modality === 'SR')"
    assert browser.ask(f"{report}.measurements.map((m) => m.loaded)") == [True]
    labels = browser.ask(f"{report}.measurements[0].labels.map((l) => l.label + ': ' + l.value)")
    assert "Anomaly score of the study: 1.75 {score}" in labels
    assert "Threshold of the score: 1.25 {score}" in labels
    assert not any(is_coloured(colours_at(browser, prediction, v)) for v in MIRRORED[1:])
