"""One wrong input: where it is written, what is run on it, and the usual right answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torture_base import Bench, Done, Try, failed_in, scores_in
from torture_model import INFER, Model

Study = tuple[np.ndarray, np.ndarray]


class Looked:
    """One try: where it writes, and what it runs."""

    def __init__(self, bench: Bench, of: Model, one: Try, folder: Path) -> None:
        self.bench, self.of, self.one, self.folder = bench, of, one, folder
        self.source, self.out = folder / "in", folder / "out"

    def infer(self, *words: Any, bundle: Path | None = None, source: Path | None = None) -> Done:
        """Run ``infer`` on the folder ``in``."""
        command = ("infer", source or self.source, "--bundle", bundle or self.of.bundle)
        done = self.bench.run(*command, "--out", self.out, *INFER, *words)
        self.one.expect(done.clean, f"no clear message: {done.last}")
        return done

    def cases(self, *words: Any, source: Path | None = None) -> tuple[Done, list[Any]]:
        """Run ``cases --json``."""
        done = self.bench.run("cases", source or self.source, "--json", *words)
        text = done.told[done.told.find("[") :] if done.code == 0 else "[]"
        self.one.expect(done.clean, f"no clear message: {done.last}")
        return done, json.loads(text) if text.startswith("[") else []

    def refused(self, done: Done) -> None:
        """No study has a score or a verdict, and the exit code says so."""
        scores = {n: (s["volume_score"], s["anomalous"]) for n, s in scores_in(self.out).items()}
        self.one.expect(done.code in (1, 2), done.last)
        self.one.expect(not scores, f"was scored: {scores}")
        self.one.note(next(iter(failed_in(self.out).values()), done.last))

    def warned(self, done: Done) -> None:
        """Refused, or scored with a warning."""
        if done.code:
            self.refused(done)
            return
        for case, study in scores_in(self.out).items():
            verdict = study["anomalous"]
            self.one.expect(bool(study["warnings"]), f"{case}: verdict {verdict}, no warning")
            self.one.note(f"scored with {study['warnings']}")


def phantom(look: Looked) -> Study:
    """A study of the model's own kind: image and affine."""
    image = nib.load(next(look.of.studies.glob("*normal*")))
    image = nib.as_closest_canonical(image)
    return np.asarray(image.dataobj), image.affine
