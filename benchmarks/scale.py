"""How seconds and peak memory grow with slices, studies, training images and pixels.

    python benchmarks/scale.py [--sections slices cohort features pixels] [--network both]
        [--threads 1] [--slices 10 100 1000 10000] [--real-slices 1000]
        [--volumes 1 10 100 1000] [--feature-images 50 500 5000 50000] [--pixels 1e6 1e7 1e8 1e9]

Ratio is the time of one unit over that in the row above: 1.0 on a straight line, less while
something constant is paid off, more where something grows. Each row is a process of its own, which
does a small piece of the work first, so that what the first use loads counts nowhere. Work of less
than a second is repeated, and the median stands. PyTorch has one thread: several that wait for each
other measure the scheduler as soon as another thread runs, be it the one that samples memory.

It is the code around the network that is measured: but for the default detector's rows, the network
is a mean of 3 × 3 pixels, and the encoder one that pools to features of the true shape. Studies are
one generated head behind many links, and the feature cache, 106 kB an image, has just been written:
both are read from memory as far as it goes, and a slow disk is not seen. 50,000 images take 6 GB of
the temporary folder. The files of a study end with fsync, whose time is the disk's.

Memory is above what the process held before, the volume or the open cache among it: anonymous
pages, and beside them those of mapped files, which the kernel can take back. Samples are 10 ms
apart, so that a shorter peak may be missed. A heatmap has 16 kB a slice here. Linux with glibc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import logging
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from engines import default_detector
from ignite.metrics import Metric
from monai.data import MetaTensor
from pixel_metrics import IMAGES, SIZE, batches, warm_up
from torch import Tensor, nn

from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.inference.inferer import SliceHeatmapInferer
from mcmiad_monai.metrics.pixels import PixelMetrics
from mcmiad_monai.metrics.regions import AUPRO
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.networks.score import AnomalyScore
from mcmiad_monai.phantom.brain import make_phantom
from mcmiad_monai.runtime.open import open_network
from mcmiad_monai.training.loading import training_loader

MODALITY = "brain_mri"
STUDY, DEEP_STUDY = (48, 48, 8), (64, 64, 50)
"""A study of the cohort, and one to train on; every slice of both has foreground."""
CHEAP = nn.AvgPool2d(3, stride=1, padding=1)
"""A network that costs next to nothing."""
SECTIONS = ("slices", "cohort", "features", "pixels")
ENOUGH_SECONDS, MOST_RUNS, SAMPLE_SECONDS = 1.0, 20, 0.01


class Row(NamedTuple):
    """One line of a table: seconds, and MB above the start."""

    n: int
    seconds: float
    anonymous: float
    mapped: float


class PoolingEncoder(nn.Module):
    """What `FeatureDataset` asks of an encoder, at next to no cost."""

    out_channels, grid = 272, 14  # EfficientNet-B4

    def __init__(self) -> None:
        super().__init__()
        self.provenance = {"weights": "none", "tensors_sha256": "none", "pool": "area"}

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, C, grid, grid) of images (B, 1, S, S), all channels alike."""
        return F.adaptive_avg_pool2d(image, self.grid).expand(-1, self.out_channels, -1, -1)


def measured(n: int, work: Callable[[], object], *, runs: int = MOST_RUNS) -> Row:
    """Time the work, and watch its memory."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was let go is not held
    before, seconds, done = memory(), list[float](), threading.Event()
    most = before.copy()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            np.maximum(most, memory(), out=most)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    while not seconds or (len(seconds) < runs and sum(seconds) < ENOUGH_SECONDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    done.set()
    thread.join()
    return Row(n, statistics.median(seconds), *(np.maximum(most, memory()) - before).tolist())


def memory() -> np.ndarray:
    """MB of anonymous pages and of pages of mapped files, as Linux tells them."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    told = dict(line.split(":", 1) for line in status.splitlines())
    return np.array([int(told[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")])


def slices(n: int, _folder: Path, *, real: bool = False) -> Row:
    """A volume of 64 × 64 × n, all foreground, through the inferer."""
    network, inferer = open_network(default_detector()) if real else CHEAP, SliceHeatmapInferer()
    few, whole = (MetaTensor(torch.rand(1, 1, 64, 64, depth).add_(0.1)) for depth in (8, n))
    inferer(few, network)
    return measured(n, lambda: inferer(whole, network))


def find(n: int, folder: Path) -> Row:
    """Find the studies of a folder where a mask lies beside each image."""
    links(folder / "found", n, shape=STUDY, masks=True)
    return measured(n, lambda: find_studies(folder / "found", modality=MODALITY))


def cohort(n: int, folder: Path) -> Row:
    """All that the bundle's inference does with a folder, from finding studies to its report."""
    root = copy_bundle(MODALITY + "_anomaly", folder / "bundle")
    told = {"trained_with": {"slice_range": [0.0, 1.0]}, "calibration": {}, "provenance": {}}
    package = SimpleNamespace(score=AnomalyScore(), **told)
    quiet = {"device": "cpu", "progress": False, "logging_file": False}
    same = {"network_def": package, "network": CHEAP, **quiet}

    def run(studies: Path) -> None:
        own = {"dataset_dir": str(studies), "output_dir": str(folder / "out" / studies.name)}
        open_workflow(root, "inference", {**same, **own}).run()

    run(links(folder / "one", 1, shape=STUDY))
    studies = links(folder / "all", n, shape=STUDY)
    row = measured(n, lambda: run(studies))
    if (written := len(list((folder / "out" / "all").rglob("*_scores.json")))) != n:
        raise RuntimeError(f"{written} of {n} studies were written")
    return row


def fill(n: int, folder: Path) -> Row:
    """Fill a feature cache on disk, with an encoder that costs next to nothing."""
    features(folder / "few")
    links(folder / "studies", n // DEEP_STUDY[2], shape=DEEP_STUDY)  # not timed
    row = measured(n, lambda: features(folder, n), runs=1)  # a second run would find it filled
    return row._replace(n=len(features(folder, n)))


def open_cache(n: int, folder: Path) -> Row:
    """Open the feature cache that was filled before."""
    features(folder / "few")
    return measured(n, lambda: features(folder, n))


def epoch(n: int, folder: Path) -> Row:
    """Read one epoch of it, in batches of 16, as the trainer does."""
    deque(training_loader(features(folder / "few"), batch_size=16), maxlen=0)  # keeps none
    dataset = features(folder, n)
    return measured(n, lambda: deque(training_loader(dataset, batch_size=16), maxlen=0))


def features(folder: Path, n: int = DEEP_STUDY[2]) -> FeatureDataset:
    """The training set of n images, whose cache is opened, or filled where there is none."""
    studies = links(folder / "studies", n // DEEP_STUDY[2], shape=DEEP_STUDY)
    cases = find_studies(studies, "train", modality=MODALITY)
    told: dict[str, Any] = {"cache": "disk", "cache_dir": folder / "cache", "progress": False}
    return FeatureDataset(cases, cast(FrozenEncoder, PoolingEncoder()), modality=MODALITY, **told)


def pixels(n: int, _folder: Path, kind: Callable[[], Metric] = PixelMetrics) -> Row:
    """At least n pixels, made up for a few batches that come again and again, through a metric."""
    warm_up()
    metric, one = kind(), IMAGES * SIZE**2
    count = math.ceil(n / one)
    made = list(batches(min(count, 4) * one))

    def stream() -> None:
        metric.reset()
        for batch in itertools.islice(itertools.cycle(made), count):
            metric.update(batch)
        metric.compute()

    return measured(count * one, stream)


def links(folder: Path, n: int, *, shape: tuple[int, int, int], masks: bool = False) -> Path:
    """A folder of n names of one study, made if there is none."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    phantom = make_phantom(0, shape=shape, orientation="LPS")
    study = folder / ".study.nii.gz"  # hidden files are no studies
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), study)
    for i, ending in itertools.product(range(n), ["", "_mask"] if masks else [""]):
        (folder / f"study{i:06d}{ending}.nii.gz").symlink_to(study.name)
    return folder


MEASURES: dict[str, tuple[str, Callable[[int, Path], Row]]] = {
    "slices": ("slices of a volume, inferer alone", slices),
    "real-slices": ("slices of a volume, default detector", partial(slices, real=True)),
    "find": ("studies with masks in one folder, found", find),
    "cohort": ("studies of a cohort, file to file", cohort),
    "fill": ("training images, cache filled", fill),
    "open": ("training images, cache opened", open_cache),
    "epoch": ("training images, an epoch read", epoch),
    "pixels": ("pixels, AUROC, AP, F1 and Dice", pixels),
    "aupro": ("pixels, AUPRO", partial(pixels, kind=AUPRO)),
}


def main() -> None:
    """Print one table a measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--network", choices=["tiny", "real", "both"], default="both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slices", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--real-slices", type=int, default=1000, help="most for the real network")
    parser.add_argument("--volumes", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--feature-images", type=int, nargs="+", default=[50, 500, 5000, 50_000])
    parser.add_argument("--pixels", type=float, nargs="+", default=[1e6, 1e7, 1e8, 1e9])
    parser.add_argument("--only", metavar="MEASURE:N", help="one row, as JSON")
    parser.add_argument("--folder", type=Path, help="where --only puts and finds its files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.only is not None:
            torch.set_num_threads(options.threads)
            name, n = options.only.split(":")
            logging.disable(logging.WARNING)
            warnings.simplefilter("ignore")
            print(json.dumps(MEASURES[name][1](int(n), options.folder or Path(temporary))))
            return
        print(f"{options.threads} threads, torch {torch.__version__}")
        command = [sys.executable, __file__, "--threads", str(options.threads)]
        for name, sizes in chosen(options).items():
            table(name, sizes, Path(temporary), command)


def chosen(options: argparse.Namespace) -> dict[str, list[int]]:
    """Measures and their sizes."""
    few = [n for n in options.slices if n <= options.real_slices]
    images = [DEEP_STUDY[2] * math.ceil(n / DEEP_STUDY[2]) for n in options.feature_images]
    numbers = [int(n) for n in options.pixels]
    sections = {
        "slices": {"slices": options.slices, "real-slices": few},
        "cohort": {"find": options.volumes, "cohort": options.volumes},
        "features": {"fill": images, "open": images, "epoch": images},  # of whole studies
        "pixels": {"pixels": numbers, "aupro": numbers},
    }
    if options.network != "both":
        sections["slices"].pop("slices" if options.network == "real" else "real-slices")
    return {name: sizes for s in options.sections for name, sizes in sections[s].items()}


def table(name: str, sizes: list[int], folder: Path, command: list[str]) -> None:
    """Measure each size in a process of its own, and print the rows and their slope."""
    heads = ("n", "seconds", "µs a unit", "ratio", "anon MB", "mapped MB")
    print(f"\n{MEASURES[name][0]}\n" + "".join(f"{head:>14}" for head in heads))
    rows: list[Row] = []
    for n in sizes:
        kept = folder / str(n)  # a feature cache is filled once, then opened and read
        only = [*command, "--only", f"{name}:{n}", "--folder", str(kept)]
        done = subprocess.run(only, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(row := Row(*json.loads(done.stdout.splitlines()[-1])))
        each = [r.seconds / r.n for r in rows]
        ratio = f"{each[-1] / each[-2]:.2f}" if len(each) > 1 else "-"
        line = f"{row.n:>14,}{row.seconds:>14.4g}{1e6 * each[-1]:>14.4g}{ratio:>14}"
        print(f"{line}{row.anonymous:>14.1f}{row.mapped:>14.1f}", flush=True)
    if len({row.n for row in rows}) > 1:
        x, y = (np.log([row[i] for row in rows]) for i in (0, 1))
        last = (y[-1] - y[-2]) / (x[-1] - x[-2])
        print(f"log-log slope {np.polyfit(x, y, 1)[0]:.2f}, of the last two rows {last:.2f}")


if __name__ == "__main__":
    main()
