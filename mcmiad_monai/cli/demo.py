"""The demo: train, evaluate and infer on generated studies, and draw the result.

Everything runs through the brain MRI bundle as a user would run it. :data:`SETTINGS` are the
demo's own settings, each with its reason.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from mcmiad_monai.bundle import copy_bundle
from mcmiad_monai.cli.workflows import open_quietly
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.files.room import prepare_output
from mcmiad_monai.files.writing import write_text
from mcmiad_monai.inference.montage import montage
from mcmiad_monai.inference.overlay import overlay_rows
from mcmiad_monai.networks.packaged import DEFAULT_PACKAGED, packaged_file, packaged_model
from mcmiad_monai.phantom.cohorts import write_brain_cohort

#: Studies of the demo's cohort.
#: Thresholds with a false-positive rate of 5 % need healthy slices of 19 held-out studies; every
#: second one of validation has a lesion, and some of those fill every slice.
COHORT: dict[str, Any] = {"train": 30, "val": 26, "test_normal": 6, "test_lesion": 10}

#: File in the folder of the studies; says with which seed and how many the demo wrote.
MARKER = "demo.json"

#: Overrides of the bundle's train.yaml.
SETTINGS: dict[str, Any] = {
    # ImageNet weights that pip has installed; those of the default encoder and of CLIP would be
    # downloaded
    "weights": "packaged",
    "text_prior": "hashing",
    # takes longer than it saves on a handful of small studies
    "export": False,
    # a smaller decoder learns phantoms in a minute, and makes more of that minute than the default
    "dim": 128,
    "hidden": 256,
    "rounds": 2,
    "max_epochs": 12,
    "batch_size": 8,
    "learning_rate": 0.002,
    # the cerebrum: thirty subjects are too few to learn skull base and vertex from
    "slice_range": [0.38, 0.8],
}


class DemoError(ValueError):
    """The output folder holds studies that are not the demo's."""


def run_demo(
    out: str | Path, *, seed: int = 0, device: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Run the demo, and print where everything is.

    In a folder of an earlier demo, its studies are used again and all else is computed afresh.

    Returns
    -------
    dict
        ``metrics`` of the test studies, and the paths ``bundle``, ``heatmap``, ``montage`` and
        ``figures``.

    Raises
    ------
    DemoError
        If ``out/data`` holds something else than the demo's studies.
    WeightsError
        If the package of the weights is not installed.
    """
    started = time.monotonic()
    packaged_file(packaged_model(DEFAULT_PACKAGED).package)  # or fail before anything is written
    root = Path(out).resolve()
    prepare_output(root, levels=4)
    print("1/5  phantom studies", flush=True)
    data = _studies(root / "data", seed, progress)
    bundle = copy_bundle("brain_mri_anomaly", root / "brain_mri_anomaly")
    common = {"dataset_dir": str(data / "datalist.json"), "progress": progress}
    if device:
        common["device"] = device

    print("2/5  training on healthy studies", flush=True)
    open_quietly(bundle, ["train"], {**common, **SETTINGS, "seed": seed}).run()

    print("3/5  figures on the test studies", flush=True)
    evaluation = root / "evaluation"
    overrides = {**common, "output_dir": str(evaluation)}
    workflow = open_quietly(bundle, ["train", "evaluate"], overrides)
    workflow.run()
    metrics = workflow.parser.get_parsed_content("report").report["metrics"]

    print("4/5  heatmaps of the test studies", flush=True)
    heatmaps = root / "heatmaps"
    open_quietly(bundle, ["inference"], {**common, "output_dir": str(heatmaps)}).run()

    print("5/5  montage", flush=True)
    picture = _picture(data, heatmaps, root / "montage.png")
    first = next(c["case"] for c in find_cases(data / "datalist.json", "test"))
    result = {
        "metrics": metrics,
        "bundle": bundle,
        "heatmap": heatmaps / first / f"{first}_heatmap.nii.gz",
        "montage": picture,
        "figures": evaluation / "metrics.json",
    }
    _print_result(result, heatmaps, time.monotonic() - started)
    return result


def _studies(data: Path, seed: int, progress: bool) -> Path:
    """The demo's cohort: that of an earlier demo, or a new one."""
    marker = json.dumps({"seed": seed, **COHORT})
    if data.exists() and any(data.iterdir()):
        if (data / MARKER).is_file() and (data / MARKER).read_text(encoding="utf-8") == marker:
            return data
        raise DemoError(
            f"{data} does not hold the studies of a demo with seed {seed}. Remove it, or choose "
            "another folder with --out."
        )
    partial = data.with_name("data.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a demo that was interrupted
    write_brain_cohort(partial, **COHORT, seed=seed, progress=progress)
    write_text(partial / MARKER, marker)
    if data.exists():
        data.rmdir()
    return partial.rename(data)


def _picture(data: Path, heatmaps: Path, path: Path) -> Path:
    """Montage of one study of each kind of lesion, and of a healthy one."""
    rows, seen = [], set()
    for case in find_cases(data / "datalist.json", "test"):
        name = case["case"]
        kind = name.split("_")[1]  # test_<kind>_<number>
        if kind not in seen:
            seen.add(kind)
            heatmap = heatmaps / name / f"{name}_heatmap.nii.gz"
            rows += overlay_rows(case["image"], heatmap, mask=case["label"], title=kind)
    return montage(rows, path, title="phantom studies, encoder with ImageNet weights")


def _print_result(result: dict[str, Any], heatmaps: Path, seconds: float) -> None:
    metrics = "  ".join(f"{k} {v:.3f}" for k, v in result["metrics"].items() if v is not None)
    print(
        f"""
Done in {seconds:.0f} s. The encoder had ImageNet weights, and the text prior was hashed words. The
figures are of phantoms: they show that the software works, and say nothing about patients.

  figures    {result["figures"]}
             {metrics}
  heatmap    {result["heatmap"]}
             in the study's own geometry; above 1.0 is anomalous
  all        {heatmaps}  (heatmaps, masks, scores.json, scores.csv)
  montage    {result["montage"]}
  model      {result["bundle"] / "models" / "model.pt"}"""
    )
