"""Seconds from the start of a process to its work: help, imports, and the first slice of a study.

    python benchmarks/startup.py [--repeats 5] [--dearest 10]

`mcmiad infer` reads a packaged model of the default network with random weights, EfficientNet-B4 in
its true size, and one small generated head; the clock stops when the network is called for the
first time, and the process ends there. The rows below it are the same with the other engines, and
called from Python, which leaves the garbage collector on. The others are whole processes, with
their exit. Rows take turns, after one round that is not counted and warms the disk. Beside wall
time stands the processor time of the process, user and system, which waits for nobody else.

The table below tells who is dear on the road to the first slice, by `python -X importtime`: for
each package the time in its own modules, without what these import from others, and the module of
another package that imported it first. Linux or macOS.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

SHAPE = (96, 112, 24)
CALLED = "first call of the network:"
FROM_PYTHON = "import sys; from mcmiad_monai.cli.parser import main; sys.exit(main(sys.argv[1:]))"


class Taken(NamedTuple):
    """Seconds of one process."""

    wall: float
    user: float
    system: float


class Import(NamedTuple):
    """One line of importtime."""

    name: str
    seconds: float
    depth: int


def stopping_inferer(**options: Any) -> Any:
    """Stand in for the bundle's inferer: the process ends at the first call of the network."""
    from mcmiad_monai.inference.inferer import SliceHeatmapInferer

    inferer = SliceHeatmapInferer(**options)

    def stop(*_: Any, **__: Any) -> None:
        now, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        print(f"\n{CALLED} {now} {used.ru_utime} {used.ru_stime}", file=sys.stderr, flush=True)
        os._exit(0)

    return lambda inputs, *_, **__: inferer(inputs, stop)  # type: ignore[arg-type]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dearest", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        infer, modules = prepare(Path(folder))
        module = ["-m", "mcmiad_monai.cli"]
        rows = {
            "mcmiad --help": [*module, "--help"],
            "import torch": ["-c", "import torch"],
            "import monai": ["-c", "import monai"],
            "mcmiad infer, to the first slice": [*module, *infer, "--set", "engine=torch"],
            "  with ONNX Runtime": [*module, *infer, "--set", "engine=onnxruntime"],
            "  with OpenVINO": [*module, *infer, "--set", "engine=openvino"],
            "  PyTorch, with the collector": ["-c", FROM_PYTHON, *infer, "--set", "engine=torch"],
        }
        taken: dict[str, list[Taken]] = {name: [] for name in rows}
        for turn in range(options.repeats + 1):
            for name, arguments in rows.items():
                figures, _ = run(arguments, modules)
                if turn:
                    taken[name].append(figures)
        print_times(taken)
        _, told = run(["-X", "importtime", *module, *infer], modules)
        print_imports(imports_in(told), options.dearest)


def prepare(folder: Path) -> tuple[list[str], Path]:
    """Make a bundle with a model, and a study; the command line that infers it, and its path."""
    import logging
    import warnings

    import nibabel as nib
    from engines import default_detector

    from mcmiad_monai.bundle import copy_bundle
    from mcmiad_monai.networks.package import save_package
    from mcmiad_monai.phantom.brain import make_phantom
    from mcmiad_monai.runtime.export import export_model

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    root = copy_bundle("brain_mri_anomaly", folder / "bundle")
    told = {"training": {"modality": "brain_mri", "slice_range": [0.0, 1.0]}}
    detector = default_detector()
    save_package(root / "models" / "model.pt", detector, provenance=told)
    export_model(detector, root / "models" / "model.onnx")
    phantom = make_phantom(0, shape=SHAPE, orientation="LPS")
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / "study.nii.gz")
    files = [str(folder / "study.nii.gz"), "--bundle", str(root), "--out", str(folder / "out")]
    overrides = ["device=cpu", "progress=False", "inferer#_target_=startup.stopping_inferer"]
    modules = folder / "modules"  # this file alone: others here could hide packages by their names
    modules.mkdir()
    shutil.copy(__file__, modules / "startup.py")
    return ["infer", *files, *(part for o in overrides for part in ("--set", o))], modules


def run(arguments: list[str], modules: Path) -> tuple[Taken, str]:
    """Run Python; seconds of the process, to the call of the network if there is one; stderr."""
    path = os.pathsep.join(filter(None, (str(modules), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as told:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=told,
            env={**os.environ, "PYTHONPATH": path},
        )
        _, status, used = os.wait4(process.pid, 0)
        end = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        text = told.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{text}")
    called = re.search(rf"{CALLED} (\S+) (\S+) (\S+)", text)
    if "infer" in arguments and called is None:
        raise RuntimeError(f"the network was never called:\n{text}")
    if called is None:
        return Taken(end - start, used.ru_utime, used.ru_stime), text
    now, user, system = map(float, called.groups())
    return Taken(now - start, user, system), text


def print_times(taken: dict[str, list[Taken]]) -> None:
    """Medians of every row, and the spread of its wall time."""
    print(f"{'median seconds':<34}{'wall':>8}{'least':>8}{'most':>8}{'user':>8}{'system':>8}")
    for name, runs in taken.items():
        middle = Taken(*map(statistics.median, zip(*runs, strict=True)))
        walls = [one.wall for one in runs]
        figures = (middle.wall, min(walls), max(walls), middle.user, middle.system)
        print(f"{name:<34}" + "".join(f"{value:>8.2f}" for value in figures))


def imports_in(told: str) -> list[Import]:
    """Lines of importtime; a module comes behind those that it imports, which are deeper."""
    line = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|( +)(\S+)")
    return [
        Import(found[3], int(found[1]) / 1e6, len(found[2]) // 2) for found in line.finditer(told)
    ]


def print_imports(imports: list[Import], count: int) -> None:
    """Print the dearest packages by the time in their own modules."""
    seconds: dict[str, float] = defaultdict(float)
    modules: dict[str, int] = defaultdict(int)
    importer: dict[str, str] = {}
    for place, one in enumerate(imports):
        package = one.name.partition(".")[0]
        seconds[package] += one.seconds
        modules[package] += 1
        importer.setdefault(package, outer(imports, place, package))
    print(f"\n{'imports':<20}{'seconds':>9}{'modules':>9}  first imported by")
    dearest = sorted(seconds, key=lambda name: -seconds[name])[:count]
    for name in dearest:
        print(f"{name:<20}{seconds[name]:>9.2f}{modules[name]:>9}  {importer[name]}")
    print(f"{'all packages':<20}{sum(seconds.values()):>9.2f}{len(imports):>9}")


def outer(imports: list[Import], place: int, package: str) -> str:
    """Tell the nearest module of another package around an import; "-" where there is none."""
    depth = imports[place].depth
    for one in imports[place + 1 :]:
        if one.depth < depth:
            depth = one.depth
            if one.name.partition(".")[0] != package:
                return one.name
    return "-"


if __name__ == "__main__":
    main()
