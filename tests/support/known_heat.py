"""Series on grids of all kinds, predictions on them whose heat is known, and tools that check."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_series import write_frames, write_series
from monai.data import MetaTensor
from oblique import oblique_affine

from mcmiad_monai.inference.outputs import anomaly_mask, findings, study_scores
from mcmiad_monai.inference.prediction import Prediction
from mcmiad_monai.transforms import load_volume
from mcmiad_monai.transforms.metadata import MODALITY

SHAPE = (20, 14, 7)
#: Slices in another order than that of their positions.
MIXED = (4, 0, 6, 2, 5, 1, 3)
MADE_WITH = {"version": "0", "model": "ab" * 32, "mask_threshold": 1.0, "precision": "float32"}


def volume_of(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Whole numbers (X, Y, Z) as of a CT."""
    values = np.random.default_rng(seed).integers(-900, 900, shape)
    return values.astype(np.int16)


#: Kinds of series → writes one to a path. An axis along which positions descend is the third of
#: ``I``; ``S`` with a mirrored plane has a normal that runs downwards.
SERIES: dict[str, Callable[[Path], Path]] = {
    "oblique": lambda path: write_series(path, volume_of(), oblique_affine("LPS")),
    "descending": lambda path: write_series(path, volume_of(), oblique_affine("LPI")),
    "mirrored": lambda path: write_series(path, volume_of(), oblique_affine("RPS")),
    "sagittal": lambda path: write_series(path, volume_of(), oblique_affine("PIR")),
    "shuffled": lambda path: write_series(path, volume_of(), oblique_affine("LPS"), order=MIXED),
    "mr": lambda path: write_series(path, volume_of(), oblique_affine("LPS"), modality="MR"),
    "frames": lambda path: write_frames(
        path / "all.dcm", volume_of(), oblique_affine("LPS"), range(7)
    ),
    "shuffled_frames": lambda path: write_frames(
        path / "all.dcm", volume_of(), oblique_affine("LPI"), MIXED, modality="MR"
    ),
}


def heat_on(path: Path, *, hottest: float = 5.0, modality: str = "liver_ct") -> Prediction:
    """A prediction with heat in a corner of the middle slices, of which one voxel is hottest."""
    image = load_volume(path)
    heat = torch.zeros_like(image.as_tensor())
    x, y, z = heat.shape[1:]
    values = np.random.default_rng(1).gamma(1.0, 0.5, (x // 2, y // 3, z - 2))
    heat[0, 2 : 2 + x // 2, 1 : 1 + y // 3, 1:-1] = torch.as_tensor(values, dtype=torch.float32)
    heat = heat.clamp(max=0.8 * hottest)
    heat[0, 3, 2, z - 3] = hottest
    return predicted(MetaTensor(heat, affine=image.affine), image, modality=modality)


def predicted(
    heatmap: MetaTensor, image: MetaTensor, *, name: str = "case", modality: str = "liver_ct"
) -> Prediction:
    """What a model says that gave this heatmap (1, X, Y, Z)."""
    heatmap.meta |= {"case": name, MODALITY: modality}
    heatmap.meta["original_affine"] = heatmap.affine.numpy()
    mask = anomaly_mask(heatmap)
    slices = heatmap.as_tensor().amax((0, 1, 2))
    scores = study_scores(heatmap, slices, slice_axis=2, calibration=None)
    scores |= findings(heatmap, mask) | {"input": "cd" * 32, "made_with": MADE_WITH}
    return Prediction(heatmap, mask, scores, image)


def errors_of(path: Path) -> list[str]:
    """What dciodvfy calls an error, in a file or, if it is deflated, in its inflated copy."""
    if shutil.which("dciodvfy") is None or shutil.which("dcmconv") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) or dcmconv (dcmtk) is not installed")
    inflated = path.with_suffix(".inflated")
    converted = subprocess.run(
        ["dcmconv", str(path), "+te", str(inflated)], check=False, capture_output=True
    )
    checked = inflated if converted.returncode == 0 else path  # of JPEG-LS it is not
    done = subprocess.run(["dciodvfy", str(checked)], check=False, capture_output=True, text=True)
    told = (done.stdout + done.stderr).splitlines()
    assert any("Warning" in line or line.strip() for line in told), "it names the object at least"
    return [line for line in told if line.startswith("Error")]


def tool(name: str) -> str:
    """A program of dcmqi, from PATH or from beside the interpreter."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed (PyPI's dcmqi)")
    return found
