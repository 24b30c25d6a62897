"""Experiments that run in seconds, on generated trees in BMAD's layouts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from mcmiad_monai.research.bmad.phantom import Layout, write_bmad_phantom
from mcmiad_monai.research.bmad.sets import find_bmad
from mcmiad_monai.research.protocols.laboratory import Laboratory
from mcmiad_monai.research.protocols.reproduce import reproduce
from mcmiad_monai.training.method import Method

SIZE = 64
TINY = Method(
    encoder_name="test_efficientnet.r160_in1k",
    weights="random",
    text_prior="hashing",
    max_epochs=2,
    batch_size=4,
    min_steps_per_epoch=1,
    head={"dim": 16, "heads": 2, "hidden": 16, "experts": 2, "rounds": 1},
)


def make_lab(root: Path, *sets: str, layout: Layout = "official") -> Laboratory:
    data = write_bmad_phantom(root / "data", layout=layout, sets=sets, size=SIZE)
    return Laboratory(sets=find_bmad(data), cache_dir=root / "features", size=SIZE, progress=False)


def run(root: Path, **options: Any) -> Path:
    reproduce(
        find_bmad(root / "data"),
        root / "out",
        options.pop("method", TINY),
        size=SIZE,
        progress=False,
        **options,
    )
    return root / "out"


def read_table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))
