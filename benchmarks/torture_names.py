"""Hostile names in datalists, folders and headers: outputs stay below ``--out``, none is lost."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torture_base import Bench, Done, Try, differences, failed_in, read_json, scores_in, tree
from torture_dicom import write_series
from torture_model import INFER, Model, head, model, nifti

KIND = "hostile names"
#: Names of cases in a datalist.
CASES = {
    "parts of a path": "../../escaped",
    "absolute": "/tmp/torture_escaped",
    "deep": "../" * 12 + "tmp/torture_escaped",
    "backslashes": "..\\..\\escaped",
    "two dots": "..",
    "one dot": ".",
    "empty": "",
    "blanks": "   ",
    "newline": "a\n12 studies done, 0 failed: out",
    "carriage return": "a\rmcmiad: all is well",
    "escape sequences": "\x1b[2J\x1b[31mred",
    "NUL": "a\0b",
    "300 characters": "n" * 300,
    "300 characters of 3 bytes": "\u6f22" * 300,
    "hash": "case#3",
    "colons": "case::3",
    "dollar": "$import os",
    "at": "@SUM(1)",
    "formula": '=HYPERLINK("http://127.0.0.1/","x")',
    "minus": "-rf",
    "script": "<script>alert(1)</script>",
    "home": "~root",
    "right to left": "a\u202egpj.exe",
    "reserved": "scores.json",
    "hidden": ".hidden",
    "a number": 17,
    "a list": ["a"],
    "null": None,
}
#: Names of folders and files, as typed.
PATHS = (
    "case#3",
    "a::b",
    "%40x",
    "$x",
    "@x",
    "sp ace",
    "-x",
    "a'b",
    'a"b',
    "a\\b",
    "[x]",
    "{x}",
    "~x",
)
PATHS = (*PATHS, "n" * 200, "\u00e9\u6f22", "a\nb", "=1+1", "a;b", "a,b", "x.nii", ".x")


def run_names(bench: Bench) -> None:
    """All names."""
    of = model(bench)
    step = 7 if bench.quick else 1
    bench.each(partial(_datalist, bench, of), list(CASES)[::step])
    bench.each(partial(_typed, bench, of), PATHS[::step])
    bench.each(partial(_layout, bench, of), list(LAYOUTS)[:: 3 if bench.quick else 1])


def _inferred(
    bench: Bench, of: Model, one: Try, folder: Path, *sources: Any, out: Path | None = None
) -> tuple[Done, Path]:
    """Run ``infer``, and look whether anything but the output folder has changed."""
    target = out or folder / "out"
    before = tree(folder, without=[target])
    here = {path.name for place in ("/tmp", "/") for path in Path(place).glob("*escaped*")}
    done = bench.run("infer", *sources, "--bundle", of.bundle, "--out", target, *INFER)
    changed = differences(tree(folder, without=[target]), before)
    one.expect(not changed, f"outside of --out: {changed}")
    now = {path.name for place in ("/tmp", "/") for path in Path(place).glob("*escaped*")}
    one.expect(now <= here, f"written: {sorted(now - here)}")
    one.expect(done.clean, f"no clear message: {done.last}")
    _look_at_lists(one, target, done)
    return done, target


def _look_at_lists(one: Try, out: Path, done: Done) -> None:
    """Each study has a folder of its own; no live formula; no forged line; no HTML."""
    for case in scores_in(out):
        files = [out / case / f"{case}_{what}" for what in ("heatmap.nii.gz", "scores.json")]
        there = all(path.is_file() and not path.parent.is_symlink() for path in files)
        one.expect(there, f"no files of {case[:40]!r}")
    table = out / "scores.csv"
    if table.is_file():
        for row in csv.reader(table.open(newline="", encoding="utf-8")):
            live = [c for c in row if re.match(r"[=+@\t\r]|-[^0-9.]", c)]
            one.expect(not live, f"a live formula: {live[:1]}")
    lines = done.told.splitlines()
    one.expect("\x1b" not in done.told, "an escape sequence was printed")
    forged = [t for t in lines if t.startswith(("12 studies done", "mcmiad: all is well"))]
    one.expect(not forged, f"a forged line: {forged[:1]}")


def _complete(one: Try, done: Done, out: Path, count: int) -> None:
    """All studies were done, or the command refused its input as a whole."""
    found = len(scores_in(out))
    if done.code == 2 and not found:
        one.note(f"refused: {done.last}")
        return
    total = found + len(failed_in(out))
    one.expect(total == count, f"{found} done and {len(failed_in(out))} failed of {count}")
    one.expect((done.code == 0) == (found == count), done.last)
    one.note(f"names: {sorted(scores_in(out))}")


def _datalist(bench: Bench, of: Model, name: str) -> None:
    with bench.attempt(KIND, f"case: {name}", "infer of a datalist") as (one, folder):
        deep = folder / "a" / "b"
        of.good(deep / "in", "first")
        of.good(deep / "in", "second")
        rows = [{"image": "first.nii.gz", "case": CASES[name]}, {"image": "second.nii.gz"}]
        (deep / "in" / "datalist.json").write_text(json.dumps({"test": rows}))
        done, out = _inferred(bench, of, one, folder, deep / "in", out=deep / "out")
        _complete(one, done, out, 2)


def _typed(bench: Bench, of: Model, name: str) -> None:
    """As a folder of studies, as a file and as output folder, each as it is typed."""
    with bench.attempt(KIND, f"path: {name}", "infer of a folder, into one") as (one, folder):
        of.good(folder / "in" / name, "study")
        of.good(folder / "in2", name)
        (folder / "res").mkdir()
        out = folder / "res" / name
        source, second = folder / "in" / name, folder / "in2"
        done, _ = _inferred(bench, of, one, folder, source, second, out=out)
        if not name.startswith("."):  # hidden files are passed over, and the docs say so
            one.expect(out.is_dir(), f"{name!r} was not made as typed")
            _complete(one, done, out, 2)
            one.expect(done.code == 0, done.last)


def _two_stems(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    image, affine = head()
    for path in ("p1.nii.gz", "p1.nii", "p2.nii.gz", "P1.nii.gz"):
        nifti(folder / "in" / path, image, affine)
        image = image[::-1].copy()
    done, out = _inferred(bench, of, one, folder, folder / "in")
    _complete(one, done, out, 4)
    one.expect(done.code == 0, done.last)


def _study_by_study(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    image, affine = head()
    nifti(folder / "in" / "pat1" / "flair.nii.gz", image, affine)
    nifti(folder / "in" / "pat2" / "flair.nii.gz", image[::-1].copy(), affine)
    first, out = _inferred(bench, of, one, folder, folder / "in" / "pat1")
    kept = tree(out / "flair")
    second, _ = _inferred(bench, of, one, folder, folder / "in" / "pat2")
    one.expect(first.code == 0, first.last)
    one.expect(tree(out / "flair") == kept, "the second study replaced the first")
    one.expect(len(scores_in(out)) + (second.code != 0) == 2, f"lost: {second.last}")
    one.note(second.last)


def _second_run(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    of.good(folder / "in1", "a")
    of.good(folder / "in2", "b")
    _inferred(bench, of, one, folder, folder / "in1")
    _, out = _inferred(bench, of, one, folder, folder / "in2")
    one.expect(set(scores_in(out)) == {"a", "b"}, f"listed are {sorted(scores_in(out))}")
    rows = list(csv.reader((out / "scores.csv").open(newline="")))
    one.expect({row[0] for row in rows[1:]} == {"a", "b"}, "scores.csv lost a study")
    one.note("both are listed")


def _linked_folder(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    of.good(folder / "in", "study")
    (folder / "elsewhere").mkdir()
    (folder / "out").mkdir()
    (folder / "out" / "study").symlink_to(folder / "elsewhere")
    done, _ = _inferred(bench, of, one, folder, folder / "in")
    one.expect(done.code != 0, "the link was followed")
    one.note(done.last)


def _linked_file(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    of.good(folder / "in", "study")
    (folder / "mine.json").write_text("mine")
    (folder / "out").mkdir()
    for name in ("scores.json", "scores.csv"):
        (folder / "out" / name).symlink_to(folder / "mine.json")
    done, _ = _inferred(bench, of, one, folder, folder / "in")
    one.expect((folder / "mine.json").read_text() == "mine", "a file elsewhere was written")
    one.note(done.last)


def _headers(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    image, affine = head()
    evil = "../../escaped"
    more = {(0x10, 0x10): ("PN", evil), (0x10, 0x20): ("LO", evil), (8, 0x103E): ("LO", evil)}
    more |= {(8, 0x50): ("SH", evil), (0x20, 0x10): ("SH", "/tmp/escaped")}
    write_series(folder / "in" / "pat1", image, affine, more=more)
    write_series(folder / "in" / "pat2", image, affine, more=more, series="2")
    done, out = _inferred(bench, of, one, folder, folder / "in")
    _complete(one, done, out, 2)
    one.expect(done.code == 0, done.last)
    one.expect(evil not in done.told, "a header was printed")


def _inside(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    of.good(folder / "in", "p1")
    out = folder / "in" / "heatmaps"
    for _ in range(2):
        done, _ = _inferred(bench, of, one, folder, folder / "in", out=out)
        one.expect(done.code == 0, done.last)
    one.expect(set(scores_in(out)) == {"p1"}, f"studies are {sorted(scores_in(out))}")
    one.note("one study")


def _outside_images(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    """A datalist may name studies elsewhere; its report must be none of theirs."""
    path = of.good(folder / "far", "study")
    (folder / "in").mkdir()
    rows = [{"image": str(path)}, {"image": "../far/study.nii.gz", "case": "again"}]
    (folder / "in" / "datalist.json").write_text(json.dumps({"test": rows}))
    done, out = _inferred(bench, of, one, folder, folder / "in")
    one.expect(done.code in (0, 2), done.last)
    one.note(f"names: {sorted(scores_in(out))}")


def _damaged_report(bench: Bench, of: Model, one: Try, folder: Path) -> None:
    of.good(folder / "in", "study")
    (folder / "out").mkdir()
    (folder / "out" / "scores.json").write_text('{"scores": [{"case"')
    done, out = _inferred(bench, of, one, folder, folder / "in")
    one.expect(done.code == 0 and len(scores_in(out)) == 1, done.last)
    kept = out / "scores.json.unreadable"
    one.expect(kept.is_file(), "what was there is lost")
    one.expect(read_json(out / "scores.json") is not None, "no report")
    one.note("the old file is kept")


LAYOUTS: dict[str, Callable[[Bench, Model, Try, Path], None]] = {
    "files of one stem": _two_stems,
    "study by study into one folder": _study_by_study,
    "two runs into one folder": _second_run,
    "a study's folder is a link": _linked_folder,
    "scores.json is a link": _linked_file,
    "DICOM headers": _headers,
    "output inside of the input, twice": _inside,
    "datalist of studies elsewhere": _outside_images,
    "scores.json is damaged": _damaged_report,
}


def _layout(bench: Bench, of: Model, name: str) -> None:
    with bench.attempt(KIND, name, "infer") as (one, folder):
        LAYOUTS[name](bench, of, one, folder)
