"""Bit flips in the files of a bundle and in studies: refused, or without any effect."""

from __future__ import annotations

import re
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torture_base import Bench, Done, Try, scores_in
from torture_model import INFER, Model, model

KIND = "bit flips"
MODEL = "models/model.pt"
ONNX = "models/model.onnx"
CONFIGS = ("inference.yaml", "train.yaml", "evaluate.yaml", "metadata.json")


def run_flips(bench: Bench) -> None:
    """All flips."""
    of = model(bench)
    plan: list[tuple[str, str, int]] = [
        ("the weights", "torch", 16),
        ("the thresholds", "torch", 6),
        ("the weights, MONAI's command", "monai", 3),
        ("a study", "torch", 6),
    ]
    if (of.bundle / ONNX).exists():
        plan.append(("the ONNX file", "onnxruntime", 10))
        if find_spec("openvino"):
            plan.append(("the ONNX file", "openvino", 4))
    tries = [
        (what, engine, number)
        for what, engine, count in plan
        for number in range(1 if bench.quick else count)
    ]
    bench.each(partial(flip_and_infer, bench, of), tries)
    files = [f"configs/{name}" for name in CONFIGS] + [MODEL, "models/MODEL_CARD.md", "SHA256SUMS"]
    bench.each(partial(flip_and_verify, bench, of), files[:: 3 if bench.quick else 1])


def copied(of: Model, folder: Path) -> Path:
    """A copy of the bundle, without its event files."""
    return Path(shutil.copytree(of.bundle, folder / "bundle", ignore=lambda *_: ["eval"]))


def flip(path: Path, place: int, bit: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def _place(rng: np.random.Generator, path: Path, what: str) -> tuple[int, int]:
    """Byte and bit to flip: of thresholds, a digit that stays one; else anywhere."""
    content = path.read_bytes()
    if what == "the thresholds":
        names = rb'"(pixel|slice|volume)_threshold": [0-9.]*([0-9])'
        found = list(re.finditer(names, content))
        chosen = found[int(rng.integers(len(found)))]
        return int(rng.integers(chosen.end(1) + 14, chosen.end())), 0
    return int(rng.integers(len(content))), int(rng.integers(8))


def flip_and_infer(bench: Bench, of: Model, what_engine_number: tuple[str, str, int]) -> None:
    """One bit of a model or a study: the same scores as ever, or an error."""
    what, engine, number = what_engine_number
    rng = bench.random(KIND, what, engine, number)
    how = "monai.bundle run" if engine == "monai" else f"infer, engine {engine}"
    with bench.attempt(KIND, f"{what}, {number + 1} ({engine})", how) as (one, folder):
        study, bundle = of.good(folder / "in"), copied(of, folder)
        path = study if what == "a study" else bundle / (ONNX if "ONNX" in what else MODEL)
        place, bit = _place(rng, path, what)
        flip(path, place, bit)
        out = folder / "out"
        if engine == "monai":
            done = bench.run(
                *("-m", "monai.bundle", "run"),
                *("--config_file", bundle / "configs" / "inference.yaml"),
                *("--dataset_dir", folder / "in", "--output_dir", out),
                *("--engine", "torch", "--progress", "False"),
            )
        else:
            command = ("infer", folder / "in", "--bundle", bundle, "--out", out)
            done = bench.run(*command, *INFER, "--set", f"engine={engine}")
            one.expect(done.clean, done.last)
        _right_or_refused(one, of, out, done, f"byte {place}, bit {bit}")


def _right_or_refused(one: Try, of: Model, out: Path, done: Done, where: str) -> None:
    """The same scores as ever (of another engine to 1e-3), or none and an error."""
    found = scores_in(out).get("good")
    if found is None:
        one.expect(done.code != 0, f"{where}: no result, and {done.last}")
        one.note(f"refused ({where})")
        return
    true = next(s for case, s in of.scores.items() if "mass" in case)
    if not one.name.endswith(("(onnxruntime)", "(openvino)")):
        same = all(found[key] == true[key] for key in ("volume_score", "anomalous", "slices"))
    else:
        same = found["anomalous"] == true["anomalous"]
        same &= abs(found["volume_score"] - true["volume_score"]) < 1e-3
    told = f"score {found['volume_score']}, verdict {found['anomalous']}"
    one.expect(same, f"{where}: {told}, but the truth is {true['volume_score']:.6g}, True")
    one.note(f"no effect ({where})")


def flip_and_verify(bench: Bench, of: Model, name: str) -> None:
    """One bit of a file of a bundle: ``verify`` names the file."""
    rng: Any = bench.random(KIND, name)
    with bench.attempt(KIND, name, "verify") as (one, folder):
        bundle = copied(of, folder)
        place, bit = _place(rng, bundle / name, name)
        flip(bundle / name, place, bit)
        done = bench.run("verify", bundle)
        one.expect(done.code == 1 and done.clean, f"byte {place}, bit {bit}: {done.last}")
        one.expect(name == "SHA256SUMS" or name in done.told, f"not named: {done.last}")
        one.note("found by its digest")
