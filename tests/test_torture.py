"""The script that tortures the command sees what does not hold, and holds where all is well."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.bundle import copy_bundle, write_checksums

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
#: Writes six files in turn and skips those that are there; a careless one writes them in halves.
TOY = """
import sys, time
from pathlib import Path

out, careful = Path(sys.argv[1]), sys.argv[2] == "careful"
out.mkdir(exist_ok=True)
for number in range(6):
    path = out / f"{number}.txt"
    if not path.exists():
        first = out.with_name(f"{number}.part") if careful else path
        with first.open("w") as file:
            file.write("one")
            file.flush()
            time.sleep(0.05)
            file.write("two")
        first.rename(path)
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bench without imports that the tests do not need."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(tmp_path))
    import torture_base

    monkeypatch.setattr(torture_base, "PRELOADED", [])
    (tmp_path / "toy.py").write_text(TOY)
    root = tmp_path / "bench"
    root.mkdir()
    yield torture_base.Bench(root, seed=0, kills=6, quick=True, workers=2)
    for name in [name for name in sys.modules if name.startswith("torture")]:
        del sys.modules[name]


@pytest.mark.parametrize("how", ["careful", "careless"])
def test_kills_tell_a_command_that_loses_results(bench: Any, tmp_path: Path, how: str) -> None:
    from torture_base import differences, tree
    from torture_kills import Victim, kill

    truth = tmp_path / "truth"
    start = time.monotonic()
    assert bench.run("-m", "toy", truth, how).code == 0
    victim = Victim(
        start=lambda out: ("-m", "toy", out, how),
        go_on=lambda out: ("-m", "toy", out, how),
        compare=lambda out: differences(tree(out), tree(truth)),
        halves=lambda _: "",
        seconds=min(0.3, time.monotonic() - start),
        way="again",
    )
    for number in range(0, 12, 3):  # SIGKILL alone
        kill(bench, "toy", victim, number)
    held = [one.held for one in bench.tries]
    assert sum(one.kills for one in bench.tries) >= 2
    assert all(held) if how == "careful" else not all(held)
    if how == "careless":
        assert "changed" in " ".join(part for one in bench.tries for part in one.seen)


def test_quick_flips_of_configurations_hold(bench: Any, tmp_path: Path) -> None:
    from torture_damage import flip_and_verify
    from torture_model import Model

    bundle = copy_bundle("brain_mri_anomaly", tmp_path / "bundle")
    write_checksums(bundle)
    of = Model(bundle, bundle, bundle, bundle, bundle)
    for name in ("configs/inference.yaml", "configs/metadata.json", "SHA256SUMS"):
        flip_and_verify(bench, of, name)
    assert [one.held for one in bench.tries] == [True] * 3, [one.seen for one in bench.tries]


def test_table_counts_what_did_not_hold_and_what_was_not_tried(bench: Any) -> None:
    from torture_page import not_held, table

    with bench.attempt("kind", "good", "nothing") as (one, _):
        one.note("well")
    with bench.attempt("kind", "bad", "nothing") as (one, _):
        one.expect(False, "a wrong verdict")
    with bench.attempt("kind", "error of the look", "nothing"):
        raise ValueError("no file")
    with bench.attempt("other", "absent", "nothing") as (one, _):
        one.held = None
    rows = table(bench.tries).splitlines()
    assert "| kind | 3 | 1 |" in rows
    assert "| other | 0; 1 not tried | 0 |" in rows
    assert "| all | 3; 1 not tried | 1 |" in rows
    assert "NOT HELD: kind: bad: a wrong verdict" in not_held(bench.tries)
