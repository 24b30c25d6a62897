"""The page of a cohort in a real browser: search, sort, filters, and a hundred thousand rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from made_results import HOSTILE, KNOWN, LONG, RIGHT_TO_LEFT

from mcmiad_monai.report.index import index_page
from mcmiad_monai.report.rows import Cohort, Row

READY = "document.documentElement.dataset.ready === 'yes'"
NAMES = "[...document.querySelectorAll('.rows .is-name')].map((e) => e.textContent)"
FOUND = "document.getElementById('found').textContent"


def opened(browser: Browser, page: Path, **options: Any) -> Browser:
    browser.open(page, **options)
    browser.wait_for(READY)
    return browser


def search(browser: Browser, text: str) -> None:
    browser.ask("document.getElementById('search').focus()")
    browser.ask("document.getElementById('search').select()")
    browser.call("Input.insertText", text=text)
    browser.ask("new Promise((done) => setTimeout(done, 250))")


def test_cohort_is_listed_searched_sorted_and_filtered(browser: Browser, report: Path) -> None:
    page = opened(browser, report / "index.html")
    names = page.ask(NAMES)
    assert names[:5] == ["tumour", HOSTILE, "tilted", RIGHT_TO_LEFT, LONG]
    assert names[-1] == "broken"
    assert page.ask(FOUND) == "9 studies"
    page.click("[data-key='name']")
    assert page.ask(NAMES)[0] == HOSTILE
    page.click("[data-key='hottest']")
    assert page.ask(NAMES)[0] == "tumour"
    page.click("[data-key='hottest']")
    assert page.ask(NAMES)[-1] == "broken", "what has no figure is last in both directions"
    assert page.ask("document.querySelector('[aria-sort=ascending]').textContent") == "Hottest"
    search(page, "4 dimensions")
    assert page.ask(NAMES) == ["broken"]
    search(page, "unlike")
    assert page.ask(NAMES) == ["odd"]
    page.click("#clear")
    page.click("[data-state='2']")
    assert page.ask(NAMES) == ["quiet"], "a study with a warning is not below the threshold"
    assert page.problems == []
    assert len(page.requests) == 1


def test_names_are_text_and_links_lead_to_their_pages(browser: Browser, report: Path) -> None:
    page = opened(browser, report / "index.html")
    links = page.ask(
        "[...document.querySelectorAll('.rows a')].map((a) => [a.textContent, a.href])"
    )
    hostile = [link for link in links if link[0] in (HOSTILE, RIGHT_TO_LEFT, LONG)]
    assert len(hostile) == 3
    for name, address in hostile:
        page.call("Page.navigate", url=address)
        page.wait_for("document.readyState === 'complete'")
        assert page.ask("document.querySelector('h1').textContent") == name
        assert page.ask("document.querySelectorAll('h1 img, .card script').length") == 0
    assert page.problems == []


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows(browser: Browser, report: Path, dark: bool) -> None:
    page = opened(browser, report / "index.html", dark=dark)
    for size in ((1280, 900), (1920, 1080)):
        page.resize(*size)
        assert page.overflows() == []


def test_everything_can_be_reached_by_keyboard(browser: Browser, report: Path) -> None:
    page = opened(browser, report / "index.html")
    reached = set()
    for _ in range(40):
        page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Tab", windowsVirtualKeyCode=9)
        reached.add(page.ask("document.activeElement.id || document.activeElement.tagName"))
    assert {"search", "table", "BUTTON", "A", "SUMMARY"} <= reached


def test_hundred_thousand_studies_have_few_elements(browser: Browser, tmp_path: Path) -> None:
    rows = [
        Row(f"study_{n:06d}", "done", 9 - n / 20000, 2.0, "normal", slices=20, slices_above=n % 9)
        for n in range(99_999)
    ]
    rows.insert(0, Row("no_threshold", "done", 10.0, slices=20))
    page = tmp_path / "index.html"
    page.write_text(index_page(Cohort(rows, KNOWN.to_dict()), [row.case for row in rows], {}))
    assert page.stat().st_size < 8e6
    shown = opened(browser, page)
    first = shown.ask("document.querySelector('.rows .row').textContent")
    assert "– / 20" in first
    assert "null" not in first
    assert shown.ask("document.querySelectorAll('.rows .row').length") < 60
    shown.ask("document.getElementById('table').scrollTop = 1e9")
    shown.wait_for(f"{NAMES}.includes('study_099998')")
    assert shown.ask("document.querySelectorAll('.rows .row').length") < 60
    search(shown, "study_0421")
    assert shown.ask(FOUND) == "100 of 100000 studies"
    shown.click("[data-key='above']")
    assert shown.ask("document.querySelectorAll('.rows .is-number')[4].textContent") == "8 / 20"
    assert shown.problems == []
