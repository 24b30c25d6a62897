"""What a report holds, and what it leaves alone."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from made_results import (
    HOSTILE,
    KNOWN,
    LONG,
    MADE_WITH,
    RIGHT_TO_LEFT,
    write_image,
    write_result,
    write_scores,
)

from mcmiad_monai.cli.parser import main
from mcmiad_monai.cohort.sql import CohortError
from mcmiad_monai.report.histogram import histogram
from mcmiad_monai.report.html import MARK, Html, data_block, document, fill
from mcmiad_monai.report.images import CHANGED, NOT_FOUND, NOT_NAMED
from mcmiad_monai.report.packing import PAGE_BYTES, mosaic, packed_heat, packed_image
from mcmiad_monai.report.rows import Row, read_cohort
from mcmiad_monai.report.volumes import Shown, shrink, steps_to_fit
from mcmiad_monai.report.words import figure, place, promise
from mcmiad_monai.report.write import write_report


class Elements(HTMLParser):
    """Elements of a page, its blocks of script and style, and its data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.blocks.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self.lasttag = ""

    def handle_data(self, data: str) -> None:
        if self.blocks and self.lasttag in ("script", "style"):
            tag, attrs, text = self.blocks[-1]
            self.blocks[-1] = tag, attrs, text + data

    @property
    def data(self) -> dict[str, Any]:
        """What the page's scripts read."""
        return dict(next(json.loads(t) for _, a, t in self.blocks if a.get("id") == "data"))


def elements(page: Path) -> Elements:
    return Elements(page.read_text(encoding="utf-8"))


def test_every_script_and_style_is_named_by_its_digest(report: Path) -> None:
    for page in (report / "index.html", report / "studies" / "tumour.html"):
        found = elements(page)
        (policy,) = (
            a["content"] or ""
            for t, a in found.tags
            if a.get("http-equiv", "").startswith("Content")
        )
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        for tag, attributes, text in found.blocks:
            assert set(attributes) <= {"id", "type"}
            if attributes.get("type") == "application/json":
                continue
            digest = base64.b64encode(sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy, tag
        assert not [a for _, a in found.tags if "style" in a or any(k.startswith("on") for k in a)]


def test_page_of_a_study_is_small_and_names_no_path(
    report: Path, results: tuple[Path, Path]
) -> None:
    for page in [report / "index.html", *(report / "studies").iterdir()]:
        text = page.read_text(encoding="utf-8")
        assert len(text.encode()) < PAGE_BYTES
        assert str(results[0]) not in text
        assert str(results[1]) not in text
        assert "Doe^Jane" not in text


def test_headers_in_a_page_hold_no_name(report: Path) -> None:
    data = elements(report / "studies" / "tumour.html").data
    heat = gzip.decompress(base64.b64decode(data["heat"]["nifti"]))
    for header in (heat[:352], base64.b64decode(data["image"]["header"])):
        read = nib.Nifti1Header(header[:348])
        assert [bytes(read[key]).strip(b"\0") for key in ("descrip", "db_name", "aux_file")] == [
            b""
        ] * 3
    assert heat[352:].count(255) >= 1


def test_hostile_names_stay_text(report: Path) -> None:
    for case in (HOSTILE, RIGHT_TO_LEFT, LONG):
        found = elements(report / "studies" / f"{case}.html")
        assert not [t for t in found.tags if t[0] == "img" and t[1].get("src") == "x"]
    index = elements(report / "index.html")
    assert {HOSTILE, RIGHT_TO_LEFT, LONG, "broken"} <= set(index.data["names"])
    assert len([1 for tag, _, _ in index.blocks if tag == "script"]) == 3
    assert "alert(2)" in index.data["reasons"][0]


def test_what_enters_a_page_is_escaped() -> None:
    assert fill('<b title="$x">', x="\"'<&>\u202e") == (
        '<b title="&quot;&#x27;&lt;&amp;&gt;\\u202e">'
    )
    assert fill("$x", x=Html("<i>")) == "<i>"
    block = data_block("data", {"a": "</script><!--", "b": [1.5, None]})
    assert block.count("</script>") == 1
    assert "<!--" not in block
    assert json.loads(re.sub("<[^>]*>", "", block)) == {"a": "</script><!--", "b": [1.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        data_block("data", [float("nan")])
    assert MARK in document(title="<", body=Html(""), styles=(), scripts=(), data={})[:400]


def test_states_of_the_index(report: Path) -> None:
    data = elements(report / "index.html").data
    state = {n: data["states"][s] for n, s in zip(data["names"], data["state"], strict=True)}
    assert state["tumour"] == "above"
    assert state["quiet"] == "below"
    assert state["odd"] == "look"
    assert state["broken"] == "refused"


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (Row("a", "done", 1.0, 2.0, "normal"), "below"),
        (Row("a", "done", 1.0, 2.0, "normal", ("out_of_distribution",)), "look"),
        (Row("a", "done", 1.0, 2.0, "normal", error="MemoryError: "), "look"),
        (Row("a", "done", 3.0, 2.0, "anomalous", ("out_of_distribution",)), "above"),
        (Row("a", "done", None, None, "none", ("nothing_looked_at",)), "look"),
        (Row("a", "refused", error="VolumeError: x"), "refused"),
        (Row("a", "quarantined"), "quarantined"),
    ],
)
def test_no_study_is_called_below_that_was_not_judged(row: Row, state: str) -> None:
    assert row.state == state


def test_pseudonyms_are_everywhere_and_the_key_is_private(
    results: tuple[Path, Path], tmp_path: Path
) -> None:
    out, source = results
    named = ["report", str(out), "--source", str(source), "--out", str(tmp_path), "-q"]
    assert main(named) == 0
    assert (tmp_path / "studies" / "tumour.html").is_file()
    key = tmp_path / "private" / "key.csv"
    assert main([*named, "--pseudonymise", "--key", str(key)]) == 0
    pages = sorted((tmp_path / "studies").iterdir())
    assert [page.name for page in pages] == [f"S{n:04d}.html" for n in range(1, 9)]
    secret = ("tumour", "tilted", "quiet", "onerror", RIGHT_TO_LEFT, LONG, "broken", "Jane")
    for page in [tmp_path / "index.html", *pages]:
        found = elements(page)
        told = json.dumps(found.data, ensure_ascii=False) + str(found.tags)
        told += re.sub(r"<script>.*?</script>", "", page.read_text("utf-8"), flags=re.S)
        assert not [name for name in secret if name in told], page.name
    kept = list(csv.DictReader(key.open(encoding="utf-8")))
    assert kept[0] == {"name": "S0001", "case": "tumour"}
    assert len(kept) == 9
    if os.name == "posix":
        assert key.stat().st_mode & 0o077 == 0
    assert main([*named, "--key", str(key)]) == 2


def test_report_in_the_folder_of_the_results_changes_no_result(
    results: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(results[0], folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert main(["report", str(folder), "--studies", "2"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(folder / "index.html")
    assert "6 studies without a page (--studies)" in told.err
    assert "6 more have files and no page" in (folder / "index.html").read_text("utf-8")
    note = folder / "studies" / "mine.html"
    note.write_text("<html>notes</html>")
    assert main(["report", str(folder), "--studies", "1", "-q"]) == 0
    assert {p.name for p in (folder / "studies").iterdir()} == {"tumour.html", "mine.html"}
    assert {p: p.read_bytes() for p in before} == before
    assert not list(folder.rglob(".*"))
    (folder / "index.html").write_text("<html>a page of mine</html>")
    assert main(["report", str(folder), "-q"]) == 2
    assert (folder / "index.html").read_text() == "<html>a page of mine</html>"


def test_image_is_shown_only_if_it_is_the_one_that_was_looked_at(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    image = write_image(source / "a.nii.gz", np.diag([2.0, 2, 5, 1]))
    write_scores(out, [write_result(out, "a", image)])

    def page(*sources: Path) -> str:
        write_report(read_cohort(out), out, sources=sources)
        return (out / "studies" / "a.html").read_text("utf-8")

    def shown(text: str) -> bool:
        return Elements(text).data["image"]["webp"] is not None

    assert NOT_NAMED in page()
    assert not shown(page())
    assert shown(page(source))
    other = write_image(source / "b.nii.gz", np.diag([2.0, 2, 5, 1]), seed=5)
    image.unlink()
    assert NOT_FOUND in page(source)
    other.rename(image)
    assert CHANGED in page(source)
    assert not shown(page(source))


def test_damaged_study_costs_its_page_alone(
    results: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(results[0], folder)
    (folder / "tilted" / "tilted_heatmap.nii.gz").write_bytes(b"no image")
    assert main(["report", str(folder)]) == 1
    assert "study tilted has no page" in capsys.readouterr().err
    assert (folder / "studies" / "quiet.html").is_file()
    assert "tilted" in elements(folder / "index.html").data["names"]


def test_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=re.escape(str(tmp_path))):
        read_cohort(tmp_path)


def test_large_volume_is_made_small_and_stays_in_place() -> None:
    shape, affine = (200, 180, 60), np.diag([0.7, 0.7, 2.0, 1.0])
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    heat = rng.random(shape, dtype=np.float32)
    heat[100:104, 60:64, 20:22] = 9.0
    shown = Shown(heat, affine, image, affine)
    room = 300_000
    packed = packed_heat(shown, room)
    assert len(packed["nifti"]) <= room
    read = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(packed["nifti"])))
    peak = np.unravel_index(np.argmax(read.get_fdata()), read.shape)
    millimetres = read.affine @ [*peak, 1]
    assert millimetres[:3] == pytest.approx([101.5 * 0.7, 61.5 * 0.7, 41.0], abs=4.5)
    grey = packed_image(shown, room)
    assert len(grey["webp"]) <= room


def test_blocks_keep_the_place_of_what_they_hold() -> None:
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]])
    volume = np.zeros((7, 6, 4))
    volume[4:6, 2:4, 2:4] = 1
    smaller, moved = shrink(volume, affine, (2, 2, 2))
    assert smaller.shape == (4, 3, 2)
    (found,) = np.argwhere(smaller == 1)
    assert (moved @ [*found, 1])[:3] == pytest.approx((affine @ [4.5, 2.5, 2.5, 1])[:3])
    assert steps_to_fit((512, 512, 78), (0.7, 0.7, 2.0), 6_000_000) == (2, 2, 1)


def test_mosaic_holds_each_slice_once() -> None:
    volume = np.arange(5 * 4 * 7, dtype=np.uint8).reshape(5, 4, 7)
    tiles, columns = mosaic(volume)
    for k in range(7):
        down, across = 4 * (k // columns), 5 * (k % columns)
        assert (tiles[down : down + 4, across : across + 5] == volume[..., k].T).all()


def test_histogram_counts_every_study_and_tells_the_promise() -> None:
    scores = [0.1, 0.5, 1.9, 2.1, 60.0, 61.0, *[1.0] * 40]
    drawn = histogram("brain_mri", scores, KNOWN)
    assert sum(drawn["cohort"]) == len(scores)
    assert sum(drawn["normals"]) == 20
    assert drawn["low"] < 0.1
    assert drawn["high"] < 10
    assert (drawn["beyond"], drawn["above"]) == (2, 3)
    assert "at most 5%" in drawn["words"]
    none = replace(KNOWN, volume_threshold=float("inf"), normal_patients=3)
    assert "3 held-out healthy patients are too few" in promise(none)
    assert histogram(None, [1.0], None)["threshold"] is None


def test_figures_for_people() -> None:
    assert [figure(x) for x in (None, 0.0, 1.234, 12.34, 123.4, 5e-5)] == [
        *("–", "0", "1.23", "12.3", "123", "5.00e-05"),
    ]
    assert place([-12.34, 4.0, -80.0]) == "L 12.3, A 4.0, I 80.0"


def test_provenance_is_shown(report: Path) -> None:
    text = (report / "studies" / "tumour.html").read_text("utf-8")
    assert MADE_WITH["model"] in text
