"""Seconds and memory of one 240 × 240 × 155 volume, file to file, by stage and engine.

    python benchmarks/whole_volume.py [--engines torch onnxruntime openvino] [--repeats 3]
    python benchmarks/whole_volume.py --cohort 6 [--engines openvino]
    python benchmarks/whole_volume.py --engines torch --device cuda [--precision bfloat16]

The study is a generated head; the network is the default one with random weights, which costs what
trained weights cost. The stages are those of the bundle's inference.yaml, run one by one: reading
with its checks, orientation and normalisation, the slices through the network, the way back to the
study's grid, and writing heatmap, mask and scores with gzip. Memory is the peak over what the
process held when everything was imported and the network was ready.

With `--cohort` a folder of such studies goes through the evaluator of inference.yaml: as it is
shipped, where the next study is read and the last one written while one is computed, and with one
thing after the other. Seconds are those of a study, from the first reading to the last file.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
from engines import default_detector, place

from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.inference.outputs import SaveStudyd
from mcmiad_monai.networks.package import save_package
from mcmiad_monai.phantom.brain import make_phantom
from mcmiad_monai.runtime.export import export_model
from mcmiad_monai.runtime.precision import PRECISIONS

SHAPE = (240, 240, 155)
ONE_BY_ONE: dict[str, Any] = {
    "dataloader": {
        "_target_": "DataLoader",
        "dataset": "@dataset",
        "batch_size": 1,
        "num_workers": 0,
    },
    "writes": None,
}
STAGES = ("read", "orient, normalise", "slices", "restore", "write")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--engines", nargs="+", default=["torch", "onnxruntime", "openvino"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cohort", type=int, default=0, metavar="STUDIES")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    setting = {"device": options.device, "precision": options.precision}
    with tempfile.TemporaryDirectory() as folder:
        root, study = prepare(Path(folder), exported=options.engines != ["torch"])
        print(f"{place(options.device)}, {options.precision}, volume {SHAPE}")
        if options.cohort:
            cohort(study, root, options.cohort, options.engines, setting)
            return
        print(f"{'engine':<14}" + "".join(f"{s:>19}" for s in (*STAGES, "all s", "peak MB")))
        # a new process for each row: the peak of a process never falls
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for engine in options.engines:
                print(
                    pool.apply(row, (root, study, engine, options.repeats, setting)),
                    flush=True,
                )


def cohort(
    study: Path, root: Path, count: int, engines: list[str], setting: dict[str, str]
) -> None:
    """Print the table of a folder of studies."""
    folder = root / "cohort"
    folder.mkdir()
    for k in range(count):
        (folder / f"p{k:02}.nii.gz").symlink_to(study)
    print(
        f"{count} studies\n{'engine':<14}{'one by one, s':>19}{'overlapping, s':>19}{'peak MB':>19}"
    )
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for engine in engines:
            (alone, _), (both, peak) = (
                pool.apply(whole_cohort, (root, folder, engine, count, others))
                for others in ({**setting, **ONE_BY_ONE}, setting)
            )
            print(f"{engine:<14}{alone:>19.2f}{both:>19.2f}{peak:>19.0f}", flush=True)


def whole_cohort(
    root: Path, folder: Path, engine: str, count: int, others: dict[str, Any]
) -> tuple[float, float]:
    """Seconds of a study, and peak memory."""
    workflow = ready(root, folder, engine, others)
    evaluator = workflow.parser.get_parsed_content("evaluator")
    before = forget_peak()
    start = time.perf_counter()
    evaluator.run()
    seconds = (time.perf_counter() - start) / count
    if len(workflow.parser.get_parsed_content("report").scores) != count:
        raise RuntimeError(f"a study failed: {evaluator.failures}")
    return seconds, megabytes("VmHWM") - before


def ready(root: Path, source: Path, engine: str, others: dict[str, Any]) -> Any:
    """The workflow of the shipped inference.yaml, without words."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    options = {"dataset_dir": str(source), "output_dir": str(root / "out"), "engine": engine}
    quiet = {"progress": False, "logging_file": False}
    return open_workflow(root, "inference", {**options, **quiet, **others})


def forget_peak() -> float:
    """Let the peak of memory start from now: megabytes now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return megabytes("VmRSS")


def prepare(folder: Path, *, exported: bool) -> tuple[Path, Path]:
    """A bundle with a model and its exported file, and a study."""
    root = copy_bundle("brain_mri_anomaly", folder / "bundle")
    detector = default_detector()
    told = {"training": {"modality": "brain_mri", "slice_range": [0.0, 1.0]}}
    save_package(root / "models" / "model.pt", detector, provenance=told)
    if exported:
        export_model(detector, root / "models" / "model.onnx")
    phantom = make_phantom(0, shape=SHAPE, orientation="LPS")
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / "study.nii.gz")
    return root, folder / "study.nii.gz"


def row(root: Path, study: Path, engine: str, repeats: int, setting: dict[str, str]) -> str:
    """Measure an engine, and give its line."""
    workflow = ready(root, study, engine, setting)
    parts = {
        name: workflow.parser.get_parsed_content(name)
        for name in ("preprocessing", "inferer", "network", "postprocessing")
    }
    before = forget_peak()
    runs = [run(study, parts) for _ in range(repeats)]
    middle = [statistics.median(times) for times in zip(*runs, strict=True)]
    figures = "".join(f"{value:>19.2f}" for value in (*middle, sum(middle)))
    return f"{engine:<14}{figures}{megabytes('VmHWM') - before:>19.0f}"


def run(study: Path, parts: dict[str, Any]) -> list[float]:
    """Seconds of each stage of one run."""
    steps = parts["preprocessing"].transforms
    home = parts["postprocessing"].transforms
    data: Any = {"image": str(study)}
    taken = []

    def timed(work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        taken.append(time.perf_counter() - start)
        return result

    def through(transforms: Any) -> Any:
        result = data
        for transform in transforms:
            result = transform(result)
        return result

    data = timed(lambda: through(steps[:1]))
    data["image"].meta["case"] = "study"
    data = timed(lambda: through(steps[1:]))
    heat = timed(lambda: parts["inferer"](data["image"][None], parts["network"]))
    data["pred"] = heat[0]
    writers = [t for t in home if isinstance(t, SaveStudyd)]
    for writer in writers:
        writer.writes = None  # timed, not left to the background
    data = timed(lambda: through([t for t in home if t not in writers]))
    timed(lambda: through(writers))
    return taken


def megabytes(field: str) -> float:
    """A figure of this process's memory, as Linux tells it: VmRSS now, VmHWM the most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status does not tell {field}; this benchmark needs Linux.")


if __name__ == "__main__":
    main()
