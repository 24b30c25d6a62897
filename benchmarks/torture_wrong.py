"""Inputs that are not what the model looks at, each with its right answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torture_base import Bench, scores_in
from torture_dicom import write_series
from torture_look import Looked, Study, phantom
from torture_model import COMMON, Model, head, made, model, nifti
from torture_reading import READING

KIND = "wrong inputs"


def run_wrong(bench: Bench) -> None:
    """All wrong inputs."""
    of = model(bench)
    names = list(ANSWERS)
    if not bench.quick:
        _ct_model(bench), _oct_model(bench)
    else:
        names = [name for name in names if not name.startswith(("CT", "picture"))][::5]
    bench.each(partial(_try, bench, of), names)


def _try(bench: Bench, of: Model, name: str) -> None:
    answer = ANSWERS[name]
    with bench.attempt(KIND, name, (answer.__doc__ or "").strip().rstrip(".")) as (one, folder):
        answer(Looked(bench, of, one, folder))


def mosaic(look: Looked) -> None:
    """Refused, or unfolded."""
    image, affine = head()
    tiles = [np.concatenate([image[::2, ::2, 3 * i + j] for j in range(3)], 1) for i in range(3)]
    whole = np.concatenate(tiles, 0)[..., None]
    kind = {(8, 8): ("CS", "ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC")}
    write_series(look.source / "mosaic", whole, affine, more=kind)
    look.refused(look.infer())


def sagittal(look: Looked) -> None:
    """Refused, or scored with a warning."""
    image, affine = head()
    for axis, name in ((0, "sag"), (1, "cor")):
        moved = affine.copy()
        moved[:3, 3] = (affine @ np.array([20.0 * (axis == 0), 24.0 * (axis == 1), 0, 1]))[:3]
        part = image[20:21] if axis == 0 else image[:, 24:25]
        nifti(look.source / f"{name}.nii.gz", part, moved)
    look.warned(look.infer())


def narrow(look: Looked) -> None:
    """Planes four pixels wide: refused, or scored with a warning."""
    image, affine = head()
    nifti(look.source / "narrow.nii.gz", image[20:24], affine)
    look.warned(look.infer())


def nothing_to_see(look: Looked) -> None:
    """No slice looked at: no score, no verdict, a warning."""
    image = np.zeros((48, 56, 12))
    image[24:27, 28:31, 5:7] = np.random.default_rng(0).uniform(300, 900, (3, 3, 2))
    nifti(look.source / "dot.nii.gz", image, head()[1], np.float32)
    done = look.infer()
    for study in scores_in(look.out).values():
        found = study["volume_score"], study["anomalous"]
        look.one.expect(found == (None, None), f"score and verdict are {found}")
        look.one.expect(bool(study["warnings"]), "no warning")
    if not scores_in(look.out):
        look.refused(done)
    look.one.note("no verdict")


def other_contrast(look: Looked) -> None:
    """Inverted grey values: refused, or scored with a warning."""
    image, affine = phantom(look)
    nifti(
        look.source / "inverted.nii.gz", np.where(image > 20, image.max() - image + 20, 0), affine
    )
    look.warned(look.infer())


def noise(look: Looked) -> None:
    """Noise alone: refused, or scored with a warning."""
    values = np.random.default_rng(0).normal(500, 100, (40, 48, 10))
    nifti(look.source / "noise.nii.gz", values, head()[1])
    look.warned(look.infer())


def _ct_model(bench: Bench) -> Path:
    return _other(bench, "liver_ct_anomaly", "ct", _hounsfield)


def _oct_model(bench: Bench) -> Path:
    return _other(bench, "retina_oct_anomaly", "oct", _scan)


def _other(bench: Bench, name: str, folder: str, write: Callable[[Path, int], Any]) -> Path:
    """A model of another modality."""

    def make(root: Path) -> Path:
        for number in range(6):
            write(root / "data", number)
        options = (*COMMON, "--method", "memory", "--set", "export=false")
        done = bench.run("train", root / "data", "--out", root / "b", "--bundle", name, *options)
        if done.code:
            raise RuntimeError(f"{name} could not be trained: {done.told[-1500:]}")
        return root / "b"

    return Path(made(bench, folder, make))


def hounsfield(seed: int = 0) -> Study:
    """Something like CT."""
    image, affine = head(seed=seed, blob=False)
    return np.where(image < 40, -1000, image / 8 - 20), affine


def _hounsfield(root: Path, number: int) -> None:
    nifti(root / f"p{number}.nii.gz", *hounsfield(number))


def ct_scaled(look: Looked) -> None:
    """HU/1000 is refused."""
    image, affine = hounsfield(9)
    nifti(look.source / "kHU.nii.gz", image / 1000, affine, np.float32)
    look.refused(look.infer(bundle=_ct_model(look.bench)))


def ct_offset(look: Looked) -> None:
    """HU + 1024 with padding is refused, or rescaled."""
    image, affine = hounsfield(9)
    image += 1024
    image[:6] = -2000
    nifti(look.source / "offset.nii.gz", image, affine)
    look.refused(look.infer(bundle=_ct_model(look.bench)))


def ct_right(look: Looked) -> None:
    """CT in HU is scored."""
    nifti(look.source / "right.nii.gz", *hounsfield(9))
    done = look.infer(bundle=_ct_model(look.bench))
    look.one.expect(done.code == 0 and len(scores_in(look.out)) == 1, done.last)
    look.one.note("scored")


def ct_for_mri(look: Looked) -> None:
    """CT for a model of MRI is refused."""
    nifti(look.source / "ct.nii.gz", *hounsfield(9))
    look.refused(look.infer())


def scan(seed: int) -> Any:
    """Something like a B-scan, as a picture."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:160, :200]
    layers = 30 + 150.0 * ((y > 60) & (y < 72)) + 90.0 * ((y > 72) & (y < 100))
    if seed >= 100:
        layers[((x - 150) / 12.0) ** 2 + ((y - 100) / 8.0) ** 2 < 1] = 250
    speckle = rng.gamma(8, 1 / 8.0, layers.shape)
    return Image.fromarray(np.clip(layers * speckle, 0, 255).astype(np.uint8))


def _scan(root: Path, number: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    scan(number).save(root / f"eye{number}.png")


def exif(look: Looked) -> None:
    """EXIF orientation: read upright, with the scores of the upright picture."""
    from PIL import Image

    look.source.mkdir()
    upright = scan(100)
    upright.save(look.source / "upright.png")
    turns = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}
    for orientation, turn in turns.items():
        tags = Image.Exif()
        tags[0x0112] = orientation
        turned = upright.transpose(turn)
        turned.save(look.source / f"exif{orientation}.jpg", quality=100, exif=tags)
    done = look.infer(bundle=_oct_model(look.bench))
    scores = scores_in(look.out)
    true = scores["upright"]["volume_score"]
    for case, study in scores.items():
        same = abs(study["volume_score"] / true - 1) < 0.05
        look.one.expect(same, f"{case}: score {study['volume_score']:.4g}, upright {true:.4g}")
        size = Image.open(look.out / case / f"{case}_mask.png").size
        look.one.expect(size == upright.size, f"{case}: result is of {size}")
    look.one.note(f"upright; {done.last}")


def hostile_values(kind: str) -> Callable[[Looked], None]:
    """Arrays of wrong values."""

    def answer(look: Looked) -> None:
        """Refused, or scored with a warning."""
        image, affine = phantom(look)
        values: Any = image.astype(np.float32)
        if kind == "NaN":
            values[10:20] = np.nan
        elif kind == "infinity":
            values[20, 20, 5] = np.inf
        elif kind == "4-D":
            values = np.stack([values, values], -1)
        elif kind == "constant":
            values[:] = 100
        elif kind == "label map":
            values = np.digitize(values, [50, 200, 400]).astype(np.float32)
        elif kind == "complex":
            values = values.astype(np.complex64)
        stored = nib.Nifti1Image(values, affine)
        look.source.mkdir()
        nib.save(stored, look.source / "study.nii.gz")
        look.warned(look.infer())

    return answer


ANSWERS: dict[str, Callable[[Looked], None]] = {
    **READING,
    "mosaic": mosaic,
    "one sagittal and one coronal slice": sagittal,
    "planes of four pixels": narrow,
    "almost empty study": nothing_to_see,
    "other contrast": other_contrast,
    "noise": noise,
    "picture: EXIF orientation": exif,
    "CT in HU/1000": ct_scaled,
    "CT not rescaled": ct_offset,
    "CT in HU": ct_right,
    "CT for MRI": ct_for_mri,
    **{
        f"values: {kind}": hostile_values(kind)
        for kind in ("NaN", "infinity", "4-D", "constant", "label map", "complex")
    },
}
