"""Studies a second of `mcmiad screen` beside `mcmiad infer`, on the same folder and all cores.

    python benchmarks/screen.py [--studies 24] [--repeats 3] [--model my_model] [--workers 2]

Both are whole commands, from the start of the process to its end, and take turns, each into an
empty folder. The studies are generated brains of --shape, the model is by default the default
network with random weights, EfficientNet-B4 in its true size, with an export for ONNX Runtime.
`work` is the time without start and end: from the first file of a study to the last one, with as
many studies less. A ratio above 1 means that `screen` is faster.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = (96, 112, 24)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--studies", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    parser.add_argument("--model", type=Path, help="bundle or model.pt (default: random weights)")
    parser.add_argument("--workers", type=int, help="of screen (default: its own)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_studies(root / "data", options.studies, tuple(options.shape))
        model = options.model or write_model(root)
        of_both = [str(root / "data"), "--bundle", str(model), "--set", "device=cpu", "-q"]
        count = [] if options.workers is None else ["--workers", str(options.workers)]
        commands = {"infer": ["infer", *of_both], "screen": ["screen", *of_both, *count]}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(options.repeats):
            for name in list(commands)[:: 1 if turn % 2 else -1]:
                taken[name].append(seconds(commands[name], root / "out", options.studies))
                print(name, *(f"{value:.1f} s" for value in taken[name][-1]), flush=True)
    print_table(taken, options.studies)


def write_studies(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Write generated brains into one folder."""
    import nibabel as nib

    from mcmiad_monai.phantom.brain import make_phantom

    folder.mkdir()
    for k in range(count):
        phantom = make_phantom(k, shape=shape, orientation="LPS")
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / f"study_{k}.nii.gz")


def write_model(root: Path) -> Path:
    """Write a bundle with a model of random weights and its export."""
    import logging
    import warnings

    from engines import default_detector

    from mcmiad_monai.bundle import copy_bundle
    from mcmiad_monai.networks.package import save_package
    from mcmiad_monai.runtime.export import export_model

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    bundle = copy_bundle("brain_mri_anomaly", root / "bundle")
    told = {"training": {"modality": "brain_mri", "slice_range": [0.0, 1.0]}}
    detector = default_detector()
    save_package(bundle / "models" / "model.pt", detector, provenance=told)
    export_model(detector, bundle / "models" / "model.onnx")
    return bundle


def seconds(command: list[str], out: Path, studies: int) -> tuple[float, float]:
    """Seconds of a command, and between its first and its last study."""
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    line = [sys.executable, "-m", "mcmiad_monai.cli", *command, "--out", str(out)]
    subprocess.run(line, check=True)
    whole = time.perf_counter() - begun
    times = [path.stat().st_mtime for path in out.glob("*/*_scores.json")]
    if len(times) != studies:
        raise RuntimeError(f"{len(times)} of {studies} studies have a result.")
    return whole, max(times) - min(times)


def print_table(taken: dict[str, list[tuple[float, float]]], studies: int) -> None:
    """Print medians, and the ratios of each turn."""
    cores = len(os.sched_getaffinity(0))
    print(f"\n{studies} studies, {cores} cores")
    print(f"{'median':<10}{'seconds':>9}{'studies/s':>11}{'work, s':>9}{'studies/s':>11}")
    for name, runs in taken.items():
        whole, work = map(statistics.median, zip(*runs, strict=True))
        rates = studies / whole, (studies - 1) / work
        print(f"{name:<10}{whole:>9.1f}{rates[0]:>11.2f}{work:>9.1f}{rates[1]:>11.2f}")
    for part, name in enumerate(("whole", "work")):
        pairs = zip(taken["infer"], taken["screen"], strict=True)
        ratios = [before[part] / after[part] for before, after in pairs]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"screen is {statistics.median(ratios):.2f} × as fast, {name} ({shown})")


if __name__ == "__main__":
    main()
