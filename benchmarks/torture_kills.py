"""Kills at random moments of infer, train, evaluate and reproduce, and the documented way to go on.

Afterwards everything must be as after a run that nobody disturbed.
"""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torture_base import Bench, Done, Try, differences, read_json, tree
from torture_model import (
    HEAD,
    INFER,
    MEMORY,
    listing,
    made,
    model,
    small_cohort,
    trained,
)

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
#: What a command that ends itself returns after a signal; before it has begun, the signal itself.
CODES = {signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2), signal.SIGKILL: (-9,)}
#: Shares of the kills.
SHARES = {"infer": 0.4, "train": 0.2, "train memory": 0.1, "evaluate": 0.15, "reproduce": 0.15}
LONGER = 2  # copies of each study, so that there is something between two studies


@dataclass(frozen=True)
class Victim:
    """A command that is killed.

    Attributes
    ----------
    start : callable
        Output folder → command.
    go_on : callable
        Output folder → the documented command to go on with.
    compare : callable
        Output folder → what differs from the undisturbed run, empty if nothing.
    halves : callable
        Output folder after the kill → what is there but not whole, empty if nothing.
    seconds : float
        Of the undisturbed run.
    way : str
        The way to go on, in words.
    """

    start: Callable[[Path], tuple[Any, ...]]
    go_on: Callable[[Path], tuple[Any, ...]]
    compare: Callable[[Path], str]
    halves: Callable[[Path], str]
    seconds: float
    way: str


def run_kills(bench: Bench) -> None:
    """All kills."""
    model(bench)
    for name, make in VICTIMS.items():
        count = max(1, round(bench.kills * SHARES[name]))
        victim = make(bench)
        bench.each(partial(kill, bench, name, victim), range(count))


def kill(bench: Bench, name: str, victim: Victim, number: int) -> None:
    """Kill a command at a random moment, go on, and compare with the undisturbed run."""
    sign = SIGNALS[number % len(SIGNALS)]
    rng = bench.random("kill", name, number)
    share = float(rng.uniform(0.02, 0.98))
    twice = number % 4 == 3
    row = f"{name} killed by {sign.name} at {share:.0%}{', twice' if twice else ''}"
    kind = f"kills of {name.removesuffix(' memory')}"
    with bench.attempt(kind, row, victim.way) as (one, folder):
        out = folder / "out"
        done = _killed(bench, victim.start(out), sign, victim.seconds * share, out)
        _look_after_kill(one, victim, sign, done, out)
        if twice and done.killed:
            share = float(rng.uniform(0.02, 0.9))
            done = _killed(bench, victim.go_on(out), sign, victim.seconds * share, out)
            _look_after_kill(one, victim, sign, done, out)
        last = bench.run(*victim.go_on(out))
        one.expect(last.code == 0 and last.clean, f"going on: {last.last}")
        if last.code == 0:
            difference = victim.compare(out)
            one.expect(not difference, f"not as undisturbed: {difference}")
        one.note("as undisturbed")


def _killed(
    bench: Bench, command: tuple[Any, ...], sign: signal.Signals, after: float, out: Path
) -> Done:
    """Kill a command; one that was faster than that runs again and is killed earlier."""
    import shutil

    before = out.exists()
    for _ in range(4):
        done = bench.run(*command, kill=(sign, after))
        if done.killed and done.code != 0:
            break
        after /= 2
        if not before:
            shutil.rmtree(out, ignore_errors=True)
    return done


def _look_after_kill(one: Try, victim: Victim, sign: signal.Signals, done: Done, out: Path) -> None:
    if not done.killed or done.code == 0:  # it had ended before
        return
    one.kills += 1
    halves = victim.halves(out) if out.exists() else ""
    one.expect(not halves, f"after the kill: {halves}")
    one.expect(done.code in CODES[sign], f"{sign.name}: {done.last}")
    one.expect(done.clean, f"{sign.name} shows a traceback: {done.last}")


def _infer(bench: Bench) -> Victim:
    """Studies of a cohort, twice each, so that kills fall between studies."""
    of = model(bench)

    def make(root: Path) -> tuple[Path, Path, float]:
        studies, out = root / "studies", root / "out"
        studies.mkdir(parents=True)
        for path in of.studies.iterdir():
            for copy in range(LONGER):
                name = path.name.removesuffix(".nii.gz")
                (studies / f"{name}_{copy}.nii.gz").write_bytes(path.read_bytes())
        done = bench.run("infer", studies, "--bundle", of.bundle, "--out", out, *INFER)
        if done.code:
            raise RuntimeError(f"the undisturbed infer failed: {done.told[-2000:]}")
        return studies, out, done.seconds

    studies, truth, seconds = made(bench, "kill_infer", make)
    start = ("infer", studies, "--bundle", of.bundle, *INFER)

    def halves(out: Path) -> str:
        """Studies that have scores, but other ones than the truth or no heatmap."""
        found = []
        for path in out.glob("*/*_scores.json"):
            name = path.parent.name
            whole = tree(truth / name) == {
                k: v for k, v in tree(path.parent).items() if not k.startswith(".")
            }
            if not whole:
                found.append(name)
        report = out / "scores.json"
        if report.exists():
            listed = {study["case"] for study in json.loads(report.read_text())["scores"]}
            found += [n for n in listed if not (out / n / f"{n}_scores.json").exists()]
        return f"not whole: {', '.join(found)}" if found else ""

    return Victim(
        start=lambda out: (*start, "--out", out),
        go_on=lambda out: (*start, "--out", out, "--continue"),
        compare=partial(compare_inferred, truth=truth),
        halves=halves,
        seconds=seconds,
        way="infer --continue",
    )


def compare_inferred(out: Path, truth: Path) -> str:
    """Files byte for byte; the list of all studies by its content."""
    lists = {"scores.json", "scores.csv"}
    found, expected = (
        {name: how for name, how in tree(folder).items() if name not in lists}
        for folder in (out, truth)
    )
    if difference := differences(found, expected):
        return difference
    for path in (out, truth):
        if not all((path / name).exists() for name in lists):
            return "scores.json or scores.csv is missing"
    reports = [json.loads((folder / "scores.json").read_text()) for folder in (out, truth)]
    of = [sorted(report["scores"], key=lambda study: study["case"]) for report in reports]
    rows = [sorted(csv.reader((f / "scores.csv").open(newline=""))) for f in (out, truth)]
    same = of[0] == of[1] and rows[0] == rows[1] and not reports[0]["failed"]
    same &= reports[0]["studies"] == reports[1]["studies"]
    missing = len(of[1]) - len(of[0])
    return "" if same else f"scores.json or scores.csv differs ({missing} studies missing)"


def _train(bench: Bench, command: tuple[str, ...] = HEAD, name: str = "head") -> Victim:
    """Training of the head, with checkpoints; or of the memory, without."""
    if name == "memory":
        command = (*command, "--set", "export=false")
    truth, seconds = trained(bench, command, name)
    start = ("train", small_cohort(bench), *command)

    def go_on(out: Path) -> tuple[Any, ...]:
        begun = any((out / "models" / f"{n}.pt").exists() for n in ("last", "model"))
        return (*start, "--out", out, *(["--resume"] if begun else []))

    def halves(out: Path) -> str:
        """A model that is there must be the true one."""
        path = out / "models" / "model.pt"
        return _compare_models(path, truth / "models" / "model.pt") if path.exists() else ""

    def compare(out: Path) -> str:
        found, expected = listing(out), listing(truth)
        if found != expected:
            return f"files: new {sorted(found - expected)}, missing {sorted(expected - found)}"
        done = bench.run("verify", out)
        differs = halves(out)
        return differs or ("" if done.code == 0 else f"verify: {done.last}")

    way = "train --resume, or train again where there is no checkpoint"
    return Victim(lambda out: (*start, "--out", out), go_on, compare, halves, seconds, way)


def _compare_models(path: Path, truth: Path) -> str:
    """Weights and thresholds of two models."""
    import torch

    try:
        found, expected = (torch.load(p, weights_only=True) for p in (path, truth))
    except Exception as error:
        return f"model.pt is not readable: {error}"
    weights, told = [], []
    for state in (found, expected):
        content = json.loads(bytes(state.pop("_extra_state").numpy()))
        told.append((content["calibration"], content["config"]))
        weights.append(state)
    if weights[0].keys() != weights[1].keys():
        return "model.pt has other tensors"
    different = [n for n, t in weights[0].items() if not torch.equal(t, weights[1][n])]
    if different:
        largest = max(
            float((weights[0][n].double() - weights[1][n].double()).abs().max()) for n in different
        )
        return f"{len(different)} tensors of model.pt differ by up to {largest:.2g}"
    return "" if told[0] == told[1] else "thresholds or configuration of model.pt differ"


def _evaluate(bench: Bench) -> Victim:
    of = model(bench)
    start = ("evaluate", of.cohort, "--bundle", of.bundle, *INFER)

    def make(root: Path) -> tuple[Path, float]:
        done = bench.run(*start, "--out", root)
        if done.code:
            raise RuntimeError(f"the undisturbed evaluation failed: {done.told[-2000:]}")
        return root, done.seconds

    truth, seconds = made(bench, "kill_evaluate", make)

    def halves(out: Path) -> str:
        report = read_json(out / "metrics.json")  # raises where it is half
        expected = read_json(truth / "metrics.json")
        return "metrics differ" if report and report["metrics"] != expected["metrics"] else ""

    def compare(out: Path) -> str:
        return differences(tree(out), tree(truth))

    again = lambda out: (*start, "--out", out)  # noqa: E731
    return Victim(again, again, compare, halves, seconds, "evaluate again")


def _reproduce(bench: Bench) -> Victim:
    def make(root: Path) -> tuple[Path, tuple[Any, ...], float]:
        from mcmiad_monai.research.bmad.phantom import write_bmad_phantom

        write_bmad_phantom(root / "bmad", sets=["brain"], size=64)
        options = [word for word in MEMORY if word not in ("--method", "memory")]
        options += ["--epochs", "2", "--tables", "1", "--seeds", "0", "--preset", "default"]
        options += ["--set", "parts=memory", "--set", "score=memory-cosine"]
        command = ("reproduce", "--bmad", root / "bmad", *options)
        done = bench.run(*command, "--out", root / "out")
        if done.code:
            raise RuntimeError(f"the undisturbed reproduction failed: {done.told[-2000:]}")
        return root / "out", command, done.seconds

    truth, start, seconds = made(bench, "kill_reproduce", make)

    def halves(out: Path) -> str:
        wrong = [
            str(path.relative_to(out))
            for path in out.glob("runs/**/result.json")
            if _figures(path) != _figures(truth / path.relative_to(out))
        ]
        return f"results differ: {', '.join(wrong)}" if wrong else ""

    def compare(out: Path) -> str:
        found, expected = listing(out), listing(truth)
        if found != expected:
            return f"files: new {sorted(found - expected)}, missing {sorted(expected - found)}"
        tables = [name for name in sorted(expected) if name.endswith(".csv")]
        wrong = [n for n in tables if (out / n).read_bytes() != (truth / n).read_bytes()]
        return halves(out) or (f"tables differ: {', '.join(wrong)}" if wrong else "")

    again = lambda out: (*start, "--out", out)  # noqa: E731
    return Victim(again, again, compare, halves, seconds, "reproduce again")


def _figures(path: Path) -> Any:
    """Figures of an experiment, without its times."""
    content = read_json(path) or {}
    return {key: content.get(key) for key in ("metrics", "intervals", "figures")}


VICTIMS: dict[str, Callable[[Bench], Victim]] = {
    "infer": _infer,
    "train": _train,
    "train memory": partial(_train, command=MEMORY, name="memory"),
    "evaluate": _evaluate,
    "reproduce": _reproduce,
}
