"""Training time, slices a second and memory of the method beside anomalib's models, in one run.

    python benchmarks/peers_speed.py [--peer-python ANOMALIB/bin/python] [--images DATA] \
        [--encoder tf_efficientnetv2_b0 --weights FILE]

All have the same encoder weights and read the same 224 × 224 images, each in processes of its own
with two threads: one that trains and stores a model, one that opens it and answers. They train one
after the other; the answering ones take turns, so that what else the machine does falls on all.
Training is timed after a first batch through the encoder; ours is the encoding of the images and
``--steps`` steps on the kept features, no more. Memory is the growth of anonymous pages, looked at
every 10 ms, over what the process held with its libraries and images. anomalib (run with 2.7.0) is
no dependency: name the Python of an environment that has it. Its models run without its engine, on
the grid of the deepest stage, 14 × 14 as ours; by itself it takes that of the shallowest, on which
they are slower and larger. They also compute the stages behind stride 16. Below 170 training images
glibc may not give back what PatchCore's coreset search frees, which adds gigabytes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if importlib.util.find_spec("mcmiad_monai"):  # anomalib's environment need not have it
    from peers import nearest_neighbour

    from mcmiad_monai.data.cases.find import find_cases
    from mcmiad_monai.data.feature_store import FeatureBlock, SliceRecord
    from mcmiad_monai.data.features import FeatureDataset
    from mcmiad_monai.data.studies import iterate_slices, stack_images
    from mcmiad_monai.modality import normal_prompts
    from mcmiad_monai.networks.detector import MCMIADDetector
    from mcmiad_monai.networks.encoder import FrozenEncoder, build_encoder
    from mcmiad_monai.networks.package import load_package, save_package
    from mcmiad_monai.networks.score import AnomalyScore
    from mcmiad_monai.networks.text_prior import encode_hashing
    from mcmiad_monai.runtime.cpu import encoding
    from mcmiad_monai.runtime.export import export_model
    from mcmiad_monai.runtime.open import open_network
    from mcmiad_monai.training.fit import fit_head
    from mcmiad_monai.training.method import PRESETS, preset
if importlib.util.find_spec("anomalib"):
    from anomalib.models.image.padim.torch_model import PadimModel  # type: ignore[import-not-found]
    from anomalib.models.image.patchcore.torch_model import (  # type: ignore[import-not-found]
        PatchcoreModel,
    )

LOOK = 0.01  # seconds between two looks at the memory of a process
#: Features that PaDiM keeps; anomalib's default for ResNet-18, it has none for other encoders.
PADIM_FEATURES = 100
#: Options in which MoEAD's configuration differs, on the same images and features.
MOEAD = ("head", "score_terms", "mse_reduction", "balance_weight")
COLUMNS = ("train s", "slices/s", "least", "most", "train MB", "infer MB", "model MB")


class Contender(NamedTuple):
    """A row of the table; rows whose files differ in the suffix alone share the training."""

    title: str
    file: str
    make: Callable[[Any, Contender, Tensor], tuple[float, str]]
    open: Callable[[Any, Contender], Callable[[Tensor], Any]]
    needs: str = "torch"
    coreset: float | None = None


def main() -> None:
    """Print one table."""
    counts = {"train-images": 200, "steps": 40, "infer-images": 32, "batch": 16, "repeats": 5}
    parser = parser_of(__doc__, {**counts, "threads": 2})
    parser.add_argument("--peer-python", help="Python of an environment with anomalib")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        compare(options, Path(folder))


def parser_of(doc: str | None, counts: dict[str, int]) -> argparse.ArgumentParser:
    """What every comparison is asked with; counts are options with their defaults."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--encoder", default="tf_efficientnet_b4.aa_in1k")
    parser.add_argument("--weights", default="random", help="a file, pretrained, or random")
    parser.add_argument("--images", type=Path, help="studies whose slices to use; noise if unset")
    parser.add_argument("--modality", default="brain_mri", help="of the studies")
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Write what all processes read: images, weights of the encoder, and how to use them."""
    images = pictures(options, options.train_images + options.infer_images)
    np.save(folder / "make.npy", images[: options.train_images].numpy())
    np.save(folder / "open.npy", images[options.train_images :].numpy())
    encoder = build_encoder(options.encoder, weights=options.weights, pool="area")
    torch.save(encoder.trunk.model.state_dict(), folder / "encoder.pt")
    spec = {"device": "cpu", **vars(options), "images": None, "channels": encoder.out_channels}
    spec |= encoder.trunk.config.to_dict()
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    print(
        f"{options.threads} threads a process on {os.cpu_count()} cores, load {os.getloadavg()[0]} "
        f"at the start\n{options.encoder}, weights {Path(options.weights).name}; {len(images)} "
        f"slices, {options.train_images} to train on; {options.batch} at a time"
    )


def pictures(options: argparse.Namespace, count: int) -> Tensor:
    """Slices of studies, or smooth noise of a seed, (count, 1, 224, 224) in [0, 1]."""
    if options.images is None:
        coarse = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")
    samples = list(islice(iterate_slices(find_cases(options.images), options.modality), count))
    if len(samples) < count:
        raise SystemExit(f"{options.images} has {len(samples)} slices, and {count} are needed.")
    return stack_images(samples)


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Train all, let all answer in turn, and print the table."""
    missing: dict[str, str] = {}
    notes: dict[str, None] = {}
    trained: dict[str, tuple[float, float]] = {}
    opened: dict[Contender, Worker] = {}
    for one in CONTENDERS:
        peer = options.peer_python if one.needs == "anomalib" else None
        if peer is None and importlib.util.find_spec(one.needs) is None:
            missing[one.title] = f"not measured: {one.needs} is not installed"
            continue
        try:
            worker = Worker(one, "make", folder, peer)
            seconds, note = worker.ask()
            trained.setdefault(Path(one.file).stem, (seconds, worker.grown))
            notes |= {worker.versions: None, f"{one.file}: {note}": None}
            worker.process.communicate()
            worker = Worker(one, "open", folder, peer)
            worker.ask()
            opened[one] = worker
        except RuntimeError as error:
            missing[one.title] = f"failed: {error}"
    rates: dict[Contender, list[float]] = {one: [] for one in opened}
    for _ in range(options.repeats):
        for one, worker in opened.items():
            rates[one].append(options.infer_images / worker.ask())
    print("\n".join(notes))
    print(f"{'method':<36}" + "".join(f"{name:>10}" for name in COLUMNS))
    for one in CONTENDERS:
        if one.title in missing:
            print(f"{one.title:<36}  {missing[one.title]}")
            continue
        opened[one].process.communicate()
        found, (seconds, grown) = rates[one], trained[Path(one.file).stem]
        speeds = (statistics.median(found), min(found), max(found))
        size = (folder / one.file).stat().st_size / 1e6
        cells = [f"{v:>10.1f}" for v in (seconds, *speeds, grown, opened[one].grown, size)]
        print(f"{one.title:<36}" + "".join(cells))


class Worker:
    """A process of one contender; `grown` is its memory at most, over that of its libraries."""

    def __init__(self, one: Contender, phase: str, folder: Path, python: str | None) -> None:
        threads, number = str(torch.get_num_threads()), str(CONTENDERS.index(one))
        call = [python or sys.executable, __file__, "--worker", phase, str(folder), number]
        env = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        self.log = folder / f"{number}.{phase}.log"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        with self.log.open("wb") as log:
            self.process: Any = subprocess.Popen(call, env=env, stderr=log, **pipes)
        self.held = self.grown = 0.0
        self.versions = self.ask()
        self.held, self.grown = self._memory(), 0.0

    def ask(self) -> Any:
        """Answer to the next request."""
        self.process.stdin.write(b"\n")
        while not select.select([self.process.stdout], [], [], LOOK)[0]:
            self.grown = max(self.grown, self._memory() - self.held)
        if line := self.process.stdout.readline():
            return json.loads(line)
        log = self.log.read_text(encoding="utf-8", errors="replace").strip()
        raise RuntimeError(log.rsplit("\n", 1)[-1])

    def _memory(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = [row.split()[1] for row in status.splitlines() if row.startswith("RssAnon:")]
        return int(found[0]) * 1024 / 1e6 if found else 0.0  # none once it has ended


def work(phase: str, folder: Path, one: Contender) -> None:
    """What a process does: versions, then the training; or a word when open, then seconds."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    spec = SimpleNamespace(**json.loads((folder / "spec.json").read_text(encoding="utf-8")))
    spec.folder = folder
    torch.set_num_threads(spec.threads)
    torch.manual_seed(0)
    images = torch.from_numpy(np.load(folder / f"{phase}.npy"))
    libraries = [importlib.import_module(name) for name in ("torch", "timm", one.needs)]
    importlib.import_module("torch._dynamo")  # which AdamW would load
    versions = dict.fromkeys(f"{library.__name__} {library.__version__}" for library in libraries)
    sys.stdin.readline()
    print(json.dumps(", ".join(versions)), file=answers)
    sys.stdin.readline()
    if phase == "make":
        print(json.dumps(one.make(spec, one, images)), file=answers)
        return
    with torch.inference_mode():
        run = one.open(spec, one)
        run(images[: spec.batch])
        print(json.dumps("open"), file=answers)
        while sys.stdin.readline():
            start = time.perf_counter()
            for batch in images.split(spec.batch):
                run(batch)
            print(json.dumps(time.perf_counter() - start), file=answers)


@torch.inference_mode()
def encode(spec: Any, images: Tensor) -> tuple[FrozenEncoder, np.ndarray, float]:
    """Encoder, its features (n, C, grid, grid) in float16 as the project keeps them, seconds."""
    encoder = build_encoder(spec.name, weights=spec.folder / "encoder.pt", pool="area")
    place = torch.device(spec.device)
    run = encoding(encoder, place)
    run(images[: spec.batch].to(place))
    start = time.perf_counter()
    features = [run(b.to(place)).half().cpu().numpy() for b in images.split(spec.batch)]
    return encoder.cpu(), np.concatenate(features), time.perf_counter() - start


def kept(encoder: FrozenEncoder, features: np.ndarray) -> FeatureDataset:
    """Features as a dataset of the project, which otherwise reads studies."""
    records = [SliceRecord(str(i), 0, False, str(i)) for i in range(len(features))]
    masks = np.zeros((len(features), 224 * 224 // 8), np.uint8)
    block = FeatureBlock(records, features, foreground=masks, lesion=masks, size=224)
    return FeatureDataset.from_blocks([block], encoder=encoder)


def train_head(spec: Any, one: Contender, images: Tensor) -> tuple[float, str]:
    """The method as it is shipped, or in MoEAD's configuration; stored as a package."""
    method = preset("default", max_epochs=1, min_steps_per_epoch=spec.steps)
    if one.file == "moead.pt":
        own = {name: PRESETS["moead"][name] for name in MOEAD}
        method = method.with_options(**own, cosine_weight=0.0)
    encoder, features, encoding = encode(spec, images)
    start, prior = time.perf_counter(), encode_hashing(normal_prompts())
    data = kept(encoder, features)
    head, steps = fit_head(method, data, prior, progress=False, device=spec.device)
    fitting = time.perf_counter() - start
    detector = MCMIADDetector(encoder, head.cpu(), method.build_score(encoder))
    save_package(spec.folder / one.file, detector)
    note = f"{encoding:.1f} s of encoding, {steps} steps of {fitting / steps:.2f} s"
    return encoding + fitting, note


def export_head(spec: Any, one: Contender, _images: Tensor) -> tuple[float, str]:
    """The trained network as a file for engines; takes no part in the table."""
    target = spec.folder / one.file
    if not target.exists():
        export_model(load_package(target.with_suffix(".pt")), target)
    return 0.0, "exported, which is in no column"


def open_head(spec: Any, one: Contender) -> Callable[[Tensor], Any]:
    """Our network in an engine."""
    file, engine = spec.folder / one.file, one.needs
    detector = load_package(file.with_suffix(".pt"))
    return open_network(detector, engine=engine, path=file, device=spec.device)  # type: ignore[arg-type]


def train_neighbour(spec: Any, one: Contender, images: Tensor) -> tuple[float, str]:
    """The features of all images; with the encoder they are all that there is to store."""
    encoder, features, seconds = encode(spec, images)
    known = {"features": torch.from_numpy(features), **encoder.trunk.model.state_dict()}
    torch.save(known, spec.folder / one.file)
    return seconds, f"{len(features) * encoder.grid**2} tokens, all kept"


def open_neighbour(spec: Any, one: Contender) -> Callable[[Tensor], Any]:
    """The bank of benchmarks/peers.py behind the encoder."""
    encoder = build_encoder(spec.name, weights=spec.folder / "encoder.pt", pool="area")
    features = torch.load(spec.folder / one.file, weights_only=True)["features"].numpy()
    bank = nearest_neighbour(kept(encoder, features), spec.device)
    encoder, score = encoder.to(spec.device), AnomalyScore()
    return lambda images: score.upsample(bank(encoder(images)), images.shape[-2:])


def anomalib_model(spec: Any, one: Contender) -> Any:
    """One of anomalib's models with the shared weights, on the grid of the deepest stage."""
    common = {"backbone": spec.name, "layers": list(spec.indices), "pre_trained": False}
    fewer = {"n_features": min(PADIM_FEATURES, spec.channels)}
    model = PadimModel(**common, **fewer) if one.coreset is None else PatchcoreModel(**common)
    state, network = torch.load(spec.folder / "encoder.pt"), model.feature_extractor
    # what the state lacks are stages behind stride 16, which give no features
    if foreign := network.feature_extractor.load_state_dict(state, strict=False).unexpected_keys:
        raise RuntimeError(f"anomalib's extractor cannot take {foreign[:4]}")
    model.layers = common["layers"][::-1]  # the grid is that of the first
    mean, std = (
        torch.tensor(values, device=spec.device).view(1, 3, 1, 1)
        for values in (spec.mean, spec.std)
    )
    model.register_forward_pre_hook(lambda _, given: (given[0].expand(-1, 3, -1, -1) - mean) / std)
    return model.to(spec.device)


@torch.no_grad()
def train_anomalib(spec: Any, one: Contender, images: Tensor) -> tuple[float, str]:
    """Features through one of anomalib's models, and its fit; its state dict is stored."""
    model, images = anomalib_model(spec, one).train(), images.to(spec.device)
    model.feature_extractor(images[: spec.batch].expand(-1, 3, -1, -1))
    start = time.perf_counter()
    for batch in images.split(spec.batch):
        model(batch)
    encoded = time.perf_counter() - start
    model.fit() if one.coreset is None else model.subsample_embedding(one.coreset)
    seconds = time.perf_counter() - start
    torch.save(model.state_dict(), spec.folder / one.file)
    return seconds, f"{encoded:.1f} s of encoding, {seconds - encoded:.1f} s of the fit"


def open_anomalib(spec: Any, one: Contender) -> Any:
    """One of anomalib's models with its stored state."""
    model = anomalib_model(spec, one).eval()
    model.load_state_dict(torch.load(spec.folder / one.file, weights_only=True))
    return model


PEER = (train_anomalib, open_anomalib, "anomalib")
CONTENDERS = (
    Contender("ours, torch", "ours.pt", train_head, open_head),
    Contender("ours, onnxruntime", "ours.onnx", export_head, open_head, "onnxruntime"),
    Contender("ours, openvino", "ours.onnx", export_head, open_head, "openvino"),
    Contender("MoEAD's configuration, torch", "moead.pt", train_head, open_head),
    Contender("anomalib PatchCore, 10 % (default)", "patchcore10.pt", *PEER, 0.1),
    Contender("anomalib PatchCore, 1 %", "patchcore1.pt", *PEER, 0.01),
    Contender("anomalib PaDiM, 100 features", "padim.pt", *PEER),
    Contender("nearest neighbour, every token", "bank.pt", train_neighbour, open_neighbour),
)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], Path(sys.argv[3]), CONTENDERS[int(sys.argv[4])])
    else:
        main()
