"""Results of a cohort as `mcmiad infer` writes them, without a model: heat is drawn by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from mcmiad_monai.calibration import Calibration
from mcmiad_monai.files.reading import input_digest
from mcmiad_monai.inference.outputs import anomaly_mask, findings, study_scores
from mcmiad_monai.inference.writers import is_picture, write_study
from mcmiad_monai.transforms import load_volume
from mcmiad_monai.transforms.metadata import INPUT, MODALITY, with_metadata_of

#: Thresholds, and what held-out normals scored.
KNOWN = Calibration(
    *(1.0, 0.005, 1.5, 2.0, 0.05, 1000, 200, 20, 20),
    volume_scores=tuple(np.linspace(0.4, 1.9, 20).round(3).tolist()),
    typical_heat=(0.1, 0.3, 0.3, 0.3, 0.3, 0.4, 0.7),
)
MADE_WITH = {"version": "1.0", "model": "ab" * 32, "mask_threshold": 1.0, "region": "whole"}
#: A grid that is turned, of unequal spacing, and stored from left to right and from top to bottom.
SHAPE, LESION = (26, 20, 9), (6, 13, 3)

#: Names that break careless pages: markup, quotes, a template's signs, right to left, very long.
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;$name ${x}%41#?"
RIGHT_TO_LEFT = "מחקר א-ב 12"
LONG = "W" * 225
REASON = "VolumeError: /data/Doe Jane/x.nii has 4 dimensions</script><script>alert(2)</script>"


def oblique_affine() -> NDArray[np.float64]:
    """Axes A, L, I or so, in millimetres."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (9, -14, 7), degrees=True).as_matrix()
    permuted = turn @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]])
    affine[:3, :3] = permuted * (2.0, 3.0, 5.0)
    affine[:3, 3] = (31, -22, 17)
    return affine


def sheared_affine() -> NDArray[np.float64]:
    """Slices that are shifted against each other, as of a tilted gantry."""
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[1, 2] = 1.5
    return affine


def write_image(path: Path, affine: NDArray[np.float64], *, seed: int = 0) -> Path:
    """A body of noise in a dark surrounding, with a name in its header."""
    rng = np.random.default_rng(seed)
    image = rng.normal(400, 40, SHAPE)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    image[(grid**2).sum(axis=0) > 0.95] = 3
    image[LESION] = 900
    nifti = nib.Nifti1Image(image.astype(np.int16), affine)
    nifti.header["descrip"] = b"Doe^Jane"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nifti, path)
    return path


def blob(shape: tuple[int, ...], at: Sequence[int], height: float) -> torch.Tensor:
    """Heat (1, X, Y, Z) with its largest value at a voxel."""
    axes = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    far = sum((axis - place) ** 2 for axis, place in zip(axes, at, strict=True))
    heat = 0.3 + height * np.exp(-far / 6.0)
    heat[(heat <= 0.3001)] = 0.3
    return torch.as_tensor(heat, dtype=torch.float32)[None]


def write_result(
    out: Path,
    case: str,
    image: Path,
    *,
    height: float = 4.0,
    at: Sequence[int] | None = LESION,
    modality: str = "brain_mri",
    calibration: Calibration | None = KNOWN,
) -> dict[str, Any]:
    """Write the files of one study, and return its scores."""
    study = load_volume(image)
    place = tuple(n // 2 for n in study.shape[1:]) if at is None else at
    heatmap = with_metadata_of(blob(tuple(study.shape[1:]), place, height), study)
    heatmap.meta |= {"case": case, MODALITY: modality, INPUT: input_digest(image)}
    mask = anomaly_mask(heatmap)
    peaks = heatmap.as_tensor()[0].amax(dim=(0, 1))
    scores = study_scores(heatmap, peaks, slice_axis=2, calibration=calibration)
    scores |= findings(heatmap, mask)
    scores |= {"input": heatmap.meta[INPUT], "made_with": MADE_WITH}
    write_study(out, scores, heatmap, mask, study if is_picture(heatmap) else None)
    return scores


def write_scores(
    out: Path,
    scores: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str] | None = None,
    *,
    calibration: Calibration | None = KNOWN,
) -> Path:
    """Write the cohort's ``scores.json``."""
    content = {
        "studies": len(scores) + len(failed or {}),
        "failed": dict(failed or {}),
        "not_done": [],
        "calibration": calibration.to_dict() if calibration else {},
        "inferred_with": {"software": {"python": "3.11", "torch": "2"}, "git_revision": None},
        "scores": list(scores),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(content), encoding="utf-8")
    return out


def write_picture(path: Path, *, seed: int = 0) -> Path:
    """A grey picture of 60 × 40 pixels."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(40, 200, (40, 60), dtype=np.uint8)).save(path)
    return path
