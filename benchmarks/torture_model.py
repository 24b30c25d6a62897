"""What is tortured: phantoms, and models that are trained on them in seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torture_base import Bench, failed_in, scores_in, tree

#: Voxels of a study, and their size in millimetres.
SHAPE = (40, 48, 10)
RANDOM = ("--encoder", "test_efficientnet.r160_in1k", "--weights", "random", "--text-prior")
COMMON = (*RANDOM, "hashing", "--device", "cpu", "-q")
MEMORY = (*COMMON, "--method", "memory")
SMALL = [f"{key}={value}" for key, value in {"dim": 16, "hidden": 16, "heads": 2}.items()]
HEAD = (
    *COMMON,
    *("--method", "head", "--epochs", "6", "--set", "export=false"),
    *(word for line in (*SMALL, "experts=2", "rounds=1") for word in ("--set", line)),
)


@dataclass(frozen=True)
class Model:
    """A trained bundle, studies for it, and what comes out when nothing is done to it.

    Attributes
    ----------
    bundle, cohort, few, studies : Path
        Trained bundle; phantoms with a datalist, and some of them; a flat folder of test studies.
    truth : Path
        Output of an undisturbed ``infer`` of `studies`.
    """

    bundle: Path
    cohort: Path
    few: Path
    studies: Path
    truth: Path

    @property
    def scores(self) -> dict[str, Any]:
        """True scores by study."""
        return scores_in(self.truth)

    def good(self, folder: Path, name: str = "good") -> Path:
        """Copy a study with a lesion into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(next(self.studies.glob("*mass*")), folder / f"{name}.nii.gz"))

    def same_as_good(self, out: Path, name: str = "good") -> bool:
        """Whether the study of `good` got its true score and verdict."""
        found = scores_in(out).get(name, {})
        true = next(s for case, s in self.scores.items() if "mass" in case)
        keys = ("volume_score", "anomalous", "slices", "input")
        return all(found.get(key) == true[key] for key in keys)


def cohort(bench: Bench) -> Path:
    """Phantoms: 8 to train on, 20 healthy ones for thresholds, 6 to test."""
    return Path(bench.once("cohort", _write_cohort))


def _write_cohort(root: Path) -> Path:
    from mcmiad_monai.phantom.cohorts import write_brain_cohort

    counts = {"train": 28, "val": 0, "test_normal": 3, "test_lesion": 3}
    write_brain_cohort(root, **counts, shape=SHAPE, progress=False)
    path = root / "datalist.json"
    lists = json.loads(path.read_text())
    lists["training"], lists["validation"] = lists["training"][:8], lists["training"][8:]
    path.write_text(json.dumps(lists))
    return root


def model(bench: Bench) -> Model:
    """The model that most tries use: a memory of normal tokens, with thresholds for studies."""
    data, few = cohort(bench), small_cohort(bench)

    def make(root: Path) -> Model:
        bundle, studies, truth = root / "bundle", root / "studies", root / "truth"
        studies.mkdir(parents=True)
        for image in sorted((data / "test").glob("*/image.nii.gz")):
            shutil.copy(image, studies / f"{image.parent.name}.nii.gz")
        export = [f"export={'true' if _has_onnx() else 'false'}"]
        train = bench.run("train", data, "--out", bundle, *MEMORY, "--set", *export)
        if train.code:
            raise RuntimeError(f"the model could not be trained: {train.told[-2000:]}")
        infer = bench.run("infer", studies, "--bundle", bundle, "--out", truth, *INFER)
        verdicts = {study["anomalous"] for study in scores_in(truth).values()}
        if infer.code or failed_in(truth) or verdicts != {True, False}:
            raise RuntimeError(f"the undisturbed run is not right: {verdicts}, {infer.told}")
        return Model(bundle, data, few, studies, truth)

    return _locked(bench, "model", make)


#: Options of every ``infer``; the engine is the same for all.
INFER = ("--device", "cpu", "-q", "--set", "engine=torch")


def _has_onnx() -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def _locked(bench: Bench, name: str, make: Any) -> Any:
    """`Bench.once` for what runs commands, which take the lock themselves."""
    if name not in bench._made:
        bench._made[name] = make(bench.root / name)
    return bench._made[name]


def made(bench: Bench, name: str, make: Any) -> Any:
    """What `make` returns for a folder of a name; made once, before tries run beside each other."""
    return _locked(bench, name, make)


def small_cohort(bench: Bench) -> Path:
    """Four studies to train on and two for thresholds: for trainings that are killed."""

    def make(root: Path) -> Path:
        whole = cohort(bench)
        lists = json.loads((whole / "datalist.json").read_text())
        few = {"training": lists["training"][:4], "validation": lists["validation"][:2]}
        for study in (*few["training"], *few["validation"]):
            study["image"] = str(whole / study["image"])
        root.mkdir()
        (root / "datalist.json").write_text(json.dumps(few))
        return root

    return Path(made(bench, "small_cohort", make))


def trained(bench: Bench, command: tuple[str, ...], name: str) -> tuple[Path, float]:
    """An undisturbed training of a command, and the seconds that it took."""

    def make(root: Path) -> tuple[Path, float]:
        done = bench.run("train", small_cohort(bench), "--out", root, *command)
        if done.code:
            raise RuntimeError(f"training failed: {done.told[-2000:]}")
        return root, done.seconds

    found: tuple[Path, float] = made(bench, name, make)
    return found


def head(
    shape: tuple[int, int, int] = (48, 56, 12), *, seed: int = 0, blob: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """A simple head (I, J, K) in whole numbers with its affine (RAS), with a bright blob or not."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt(sum((g / half) ** 2 for g, half in zip(grid, (0.75, 0.85, 0.95), strict=True)))
    image = np.zeros(shape)
    for limit, grey in ((1.0, 300), (0.93, 80), (0.88, 420), (0.75, 350)):
        image[radius < limit] = grey
    brain = radius < 0.88
    image[brain] *= 1 + 0.3 * gaussian_filter(rng.normal(size=shape), 1.5)[brain]
    if blob:
        centre = np.array([0.3, 0.2, 0.1]).reshape(3, 1, 1, 1)
        inside = (((grid - centre) / np.array([0.14, 0.14, 0.3]).reshape(3, 1, 1, 1)) ** 2).sum(0)
        image[(inside < 1) & brain] = 950
    image = np.rint(np.abs(image + rng.normal(size=shape) * 8))
    zooms = np.array([4.0, 4.0, 6.0])
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * zooms
    return image, affine


def nifti(path: Path, image: np.ndarray, affine: np.ndarray, kind: Any = np.int16) -> Path:
    """Write a NIfTI file in millimetres with both transforms."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = nib.Nifti1Image(image.astype(kind), affine)
    stored.set_sform(affine, 1)
    stored.set_qform(affine, 1)
    stored.header.set_xyzt_units("mm")
    nib.save(stored, path)
    return path


def listing(folder: Path) -> set[str]:
    """Names of all files below a folder, without the event files of TensorBoard."""
    found = tree(folder)
    return {n for n, how in found.items() if how != "folder" and "events.out" not in n}
