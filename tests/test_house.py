"""The rooms of the package: imports run one way, and small things import small things."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mcmiad_monai
from mcmiad_monai import transforms

PACKAGE = Path(mcmiad_monai.__file__).parent
TRANSFORMS = Path(transforms.__file__).parent
#: Rooms by floor; a room imports from the floors below its own.
FLOORS = [
    {"files", "errors", "modality", "version"},
    {"provenance", "metrics"},
    {"transforms", "calibration"},
    {"networks"},
    {"runtime"},
    {"data"},
    {"inference", "training", "phantom"},
    {"overrides"},
    {"bundle"},
    {"predictor"},
    {"dicom"},
    {"research", "monailabel", "cohort"},
    {"report"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LINES = 400


def modules() -> list[Path]:
    return [
        *PACKAGE.rglob("*.py"),
        *(TRANSFORMS.rglob("*.py") if TRANSFORMS.parent != PACKAGE else []),
    ]


def room_of(file: Path) -> str:
    if TRANSFORMS in file.parents:
        return "transforms"
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a module imports, at its top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "mcmiad_monai" and len(p) > 1 and p[1] in FLOOR}


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(file) for file in modules()} - {"__init__", "bundles"}
    assert rooms == set(FLOOR)


def test_imports_run_from_the_upper_floors_to_the_lower_ones() -> None:
    upward = {
        f"{file.name} ({room}) imports {other}"
        for file in modules()
        if (room := room_of(file)) in FLOOR
        for other in imported_rooms(file) - {room}
        if FLOOR[other] >= FLOOR[room]
    }
    assert not upward


def test_no_room_imports_the_face_of_the_package() -> None:
    """It hands on names of upper floors: to import it from below is a circle."""
    face = set(mcmiad_monai.__all__)
    for file in modules():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "mcmiad_monai":
                assert not face & {alias.name for alias in node.names}, file.name


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("transforms", {"modality", "files"}),
        ("networks", {"modality", "files"}),
        ("metrics", set()),
    ],
)
def test_what_computes_knows_little_else(room: str, others: set[str]) -> None:
    for file in modules():
        if room_of(file) == room:
            assert imported_rooms(file) <= {room, *others}, file.name


def test_no_file_is_longer_than_a_room_should_be() -> None:
    root = Path(__file__).parents[1]
    files = [*modules(), *(root / "tests").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    long = {f.name: n for f in files if (n := len(f.read_text("utf-8").splitlines())) > LINES}
    assert not long


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("mcmiad_monai.files.writing", "numpy"),
        ("mcmiad_monai.errors", "numpy"),
        ("mcmiad_monai.bundle", "torch"),
        ("mcmiad_monai.cli", "torch"),
        ("mcmiad_monai.calibration", "torch"),
        ("mcmiad_monai.data.cases.find", "torch"),
        ("mcmiad_monai.inference.blend", "torch"),
    ],
)
def test_small_things_import_small_things(module: str, heavy: str) -> None:
    script = f"import sys, {module}; print({heavy!r} in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"
