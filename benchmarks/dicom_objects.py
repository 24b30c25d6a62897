"""Seconds and megabytes of each DICOM object of real series, by the form of the objects.

    python benchmarks/dicom_objects.py MODEL SERIES [SERIES …] [--repeats 3]

MODEL is any trained model; the heatmap is computed once and not timed. Of a sheared series there
are a report and a picture only. Prints a Markdown table: the least of the repeats, and the
errors that ``dciodvfy`` finds in both forms.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from mcmiad_monai import load
from mcmiad_monai.dicom.objects import KINDS, check_source, write_objects
from mcmiad_monai.dicom.source import Source, SourceError, read_source
from mcmiad_monai.inference.prediction import Prediction


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("series", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    predictor = load(options.model, device="cpu", check_modality=False)
    print("| series | object | s | MB | compact: s | MB | errors of dciodvfy |")
    print("|---|---|---|---|---|---|---|")
    for path in options.series:
        prediction, source = predictor(path), read_source(path)
        size = "×".join(str(n) for n in source.shape)
        for kind in KINDS:
            try:
                check_source(source, [kind])
            except SourceError:
                print(f"| {path.name}, {size} | {kind} | refused | | | | |", flush=True)
                continue
            cells, errors = [], 0
            for compact in (False, True):
                seconds, megabytes, found = measure(
                    prediction, source, kind, compact, options.repeats
                )
                cells += [f"{seconds:.2f}", f"{megabytes:.2f}"]
                errors += found
            print(f"| {path.name}, {size} | {kind} | {' | '.join(cells)} | {errors} |", flush=True)


def measure(
    prediction: Prediction, source: Source, kind: str, compact: bool, repeats: int
) -> tuple[float, float, int]:
    """Least seconds, megabytes and errors of an object; 0 of one that there is not."""
    seconds, megabytes, errors = [], 0.0, 0
    with TemporaryDirectory(prefix="mcmiad_") as folder:
        for _ in range(repeats):
            start = time.perf_counter()
            files = write_objects(prediction, source, [kind], folder, compact=compact)
            seconds.append(time.perf_counter() - start)
            for file in files:
                megabytes = file.stat().st_size / 1e6
        for file in files:
            errors = errors_of(file)
    return min(seconds), megabytes, errors


def errors_of(file: Path) -> int:
    """Errors that dciodvfy finds in a file, or in its inflated copy."""
    if shutil.which("dciodvfy") is None:
        raise SystemExit("dciodvfy is not installed: apt-get install dicom3tools dcmtk")
    inflated = file.with_suffix(".inflated")
    command = ["dcmconv", "+te", str(file), str(inflated)]  # fails where JPEG-LS is
    converted = subprocess.run(command, capture_output=True, check=False)
    file = inflated if converted.returncode == 0 else file
    told = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    return sum(line.startswith("Error") for line in (told.stdout + told.stderr).splitlines())


if __name__ == "__main__":
    main()
