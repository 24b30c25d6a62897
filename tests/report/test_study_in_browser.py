"""The page of a study in a real browser: what a reader sees, moves and presses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Browser

from mcmiad_monai.report.html import NIIVUE

READY = "typeof study !== 'undefined' && (study.ready || study.failed !== undefined)"
#: Where the crosshair is, in RAS millimetres, as NiiVue says.
CROSSHAIR = "Array.from(study.viewer.frac2mm(study.viewer.scene.crosshairPos, 0, true)).slice(0, 3)"
SIZES = [(1280, 900), (1920, 1080)]


def scores_of(results: tuple[Path, Path], case: str) -> dict[str, Any]:
    return dict(json.loads((results[0] / case / f"{case}_scores.json").read_text()))


def opened(browser: Browser, report: Path, case: str, **options: Any) -> Browser:
    browser.open(report / "studies" / f"{case}.html", **options)
    browser.wait_for(READY)
    assert browser.ask("study.failed ?? null") is None
    return browser


def require_quiet(browser: Browser) -> None:
    """No error, no violation of the policy, and no request but that for the page."""
    assert browser.problems == []
    assert len(browser.requests) == 1
    assert browser.requests[0].startswith("file:")


@pytest.mark.parametrize("case", ["tumour", "tilted"])
def test_crosshair_is_on_the_hottest_voxel(
    browser: Browser, report: Path, results: tuple[Path, Path], case: str
) -> None:
    page = opened(browser, report, case)
    hottest = scores_of(results, case)["hottest_mm"]
    assert page.ask(CROSSHAIR) == pytest.approx(hottest, abs=1.1 if case == "tilted" else 0.02)
    assert page.ask("study.viewer.volumes.length") == 2
    assert page.ask("study.viewer.opts.isRadiologicalConvention") is True
    heat = page.ask(
        "study.viewer.volumes[1].getValue("
        "...study.viewer.volumes[1].mm2vox(study.viewer.frac2mm("
        "study.viewer.scene.crosshairPos, 0, true)))"
    )
    limit = page.ask("study.data.heat.limit")
    assert heat == pytest.approx(limit, abs=0.15 * limit if case == "tilted" else limit / 200)
    require_quiet(page)


def test_sliders_change_what_is_shown_and_places_come_back(browser: Browser, report: Path) -> None:
    page = opened(browser, report, "tumour")
    start = page.ask(CROSSHAIR)
    page.ask("document.getElementById('threshold').focus()")
    for _ in range(5):
        page.press("ArrowRight")
    assert page.ask("study.viewer.volumes[1].cal_min") == pytest.approx(1.5)
    assert page.ask("document.getElementById('threshold-value').textContent") == "1.5"
    page.ask("document.getElementById('opacity').focus()")
    page.press("ArrowLeft")
    assert page.ask("study.viewer.volumes[1].opacity") == pytest.approx(0.6)
    page.ask("document.getElementById('profile').focus()")
    page.press("End")
    assert page.ask(CROSSHAIR) != pytest.approx(start)
    assert "Slice 8" in page.ask("document.getElementById('profile').ariaValueText")
    page.click("#profile", at=(0.02, 0.5))
    assert "Slice 0" in page.ask("document.getElementById('profile-text').textContent")
    page.click("#to-hottest")
    assert page.ask(CROSSHAIR) == pytest.approx(start)
    assert "Slice 3" in page.ask("document.getElementById('profile-text').textContent")
    page.click("[data-view='4']")
    assert page.ask("study.viewer.opts.sliceType") == 4
    require_quiet(page)


def test_slice_of_the_profile_and_of_the_montage_is_the_slice_of_the_study(
    browser: Browser, report: Path, results: tuple[Path, Path]
) -> None:
    import nibabel as nib

    page = opened(browser, report, "tumour")
    affine = nib.load(results[1] / "tumour.nii.gz").affine
    page.ask("document.getElementById('profile').focus()")
    page.press("Home")
    for index in range(9):
        voxel = np.linalg.solve(affine, [*page.ask(CROSSHAIR), 1])
        assert voxel[2] == pytest.approx(index, abs=0.02)
        page.press("ArrowRight")


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows(browser: Browser, report: Path, dark: bool) -> None:
    page = opened(browser, report, "W" * 225, dark=dark)
    for size in SIZES:
        page.resize(*size)
        assert page.overflows() == []
    lightness = page.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(lightness) < 60) is dark


def test_picture_has_a_page_without_a_viewer(browser: Browser, report: Path) -> None:
    page = opened(browser, report, "picture")
    centre = (
        "((c) => Array.from(c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data))"
        "(document.getElementById('viewer'))"
    )
    assert page.ask(centre)[3] == 255
    before = page.ask("document.getElementById('viewer').toDataURL()")
    page.ask("document.getElementById('threshold').focus()")
    page.press("Home")
    assert page.ask("document.getElementById('viewer').toDataURL()") != before
    assert "niivue" not in (report / "studies" / "picture.html").read_text()
    require_quiet(page)


def test_viewer_is_what_was_published() -> None:
    import hashlib
    from importlib.resources import files

    content = files("mcmiad_monai.report").joinpath(NIIVUE).read_bytes()
    assert hashlib.sha256(content).hexdigest() == (
        "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    )
