"""Going on with a cohort: which studies have their result already, and room for those to come."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
from isal import igzip
from PIL import Image

from mcmiad_monai.data.cases.names import plain_name
from mcmiad_monai.data.studies import study_digest
from mcmiad_monai.files.formats import PICTURE_SUFFIXES, suffix_of
from mcmiad_monai.inference.placement import VIEWER_HEATMAP
from mcmiad_monai.inference.prediction import DICOM
from mcmiad_monai.inference.writers import PICTURE_FILES, VOLUME_FILES
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.transforms.sizes import MAX_VOXELS, check_packed_header
from mcmiad_monai.version import __version__

Case = Mapping[str, Any]
#: Bytes of the files of a volume a voxel, packed, and of a picture a pixel.
VOXEL_BYTES, PIXEL_BYTES = 1, 5
#: Length of a DICOM element that ends by a mark.
UNDEFINED_LENGTH = 0xFFFFFFFF
#: Studies whose headers are read to know how much room all of them need.
SAMPLE = 32


class OtherResultError(ValueError):
    """The output folder has results of another model or of other settings."""


def made_with(
    detector: MCMIADDetector,
    *,
    mask_threshold: float,
    slice_range: Sequence[float],
    region: str,
    organ_label: int | None,
    check_modality: bool,
    precision: str,
) -> dict[str, Any]:
    """What a result depends on beside its study, fit for JSON; engines agree and are left out."""
    return {
        "version": __version__,
        "model": detector.digest,
        "mask_threshold": float(mask_threshold),
        "slice_range": [float(share) for share in slice_range],
        "region": region,
        "organ_label": organ_label,
        "check_modality": bool(check_modality),
        "precision": str(precision),
    }


def finished_studies(
    cases: Sequence[Case],
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    pictures: bool = True,
    preview: bool = False,
    nifti: bool = True,
    dicom: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Studies whose results in a folder are those that would be computed, all files readable.

    Parameters
    ----------
    cases : sequence of dict
    out : path
        The cohort's folder.
    settings : mapping
        See `made_with`.
    pictures, preview, nifti : bool
        Which files belong to a result; see `infer_cohort`.
    dicom : mapping, optional
        DICOM objects that belong to it: ``kinds``, and the other options of `Objects`.

    Returns
    -------
    dict
        Name of the case → its scores. A result that is damaged, incomplete or of another input is
        left out.

    Raises
    ------
    OtherResultError
        If a study of the same input has a result of another model or of other settings.
    """
    kept, others = {}, {}
    for case in cases:
        name = plain_name(str(case["case"]))
        stem = Path(out) / name / name
        scores = _scores(Path(f"{stem}_scores.json"))
        organ = settings["region"] == "organ"
        if scores is None or scores.get("input") != study_digest(case, organ=organ):
            continue
        files = [*_files_of(case, stem, pictures=pictures, preview=preview, nifti=nifti)]
        if dicom is not None:
            objects = _object_files(scores.get(DICOM), dicom)
            if objects is None:
                continue
            files += [stem.parent / plain_name(name) for name in objects]
        if nifti and (viewer := scores.get(VIEWER_HEATMAP)):
            files.append(stem.parent / str(viewer))
        if difference := _difference(scores, settings, case):
            others[name] = difference
        elif all(map(_readable, files)):
            kept[str(case["case"])] = scores
    if others:
        name, difference = next(iter(others.items()))
        raise OtherResultError(
            f"{len(others)} of {len(cases)} studies have a result in {out} of another model or of "
            f"other settings, and no result was changed. For example {name}: {difference}. Name "
            "another output folder (--out), or leave out --continue to compute all of them anew."
        )
    return kept


def _scores(path: Path) -> dict[str, Any] | None:
    """Scores of a study, None where there are none or they cannot be read."""
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        _ = scores["case"], scores["slices"], scores["volume_score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(scores)


def _difference(scores: Mapping[str, Any], settings: Mapping[str, Any], case: Case) -> str | None:
    """In what a result differs from what would be computed."""
    then, now = scores.get("made_with"), dict(settings)
    if not isinstance(then, Mapping) or then.get("model") is None:
        return "the result does not say which model made it"
    if case.get("modality") is not None:
        then = {**then, "modality": scores.get("modality")}
        now["modality"] = case["modality"]
    changed = [key for key in now if then.get(key) != now[key]]
    shown = (f"{key} was {_short(then.get(key))} and is {_short(now[key])}" for key in changed)
    return ", ".join(shown) or None


def _short(value: Any) -> str:
    """A setting for a message; of a digest its beginning."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def _files_of(
    case: Case, stem: Path, *, pictures: bool, preview: bool, nifti: bool
) -> Iterable[Path]:
    """Files that belong to a result, DICOM objects left out."""
    picture = pictures and _is_one_picture(Path(case["image"]).expanduser())
    endings = [*(PICTURE_FILES if picture else VOLUME_FILES)] if nifti else []
    endings += ["preview.png"] if preview else []
    return (Path(f"{stem}_{ending}") for ending in endings)


def _object_files(made: Any, wanted: Mapping[str, Any]) -> list[str] | None:
    """Files of a result's DICOM objects; None where it has not all that are wanted."""
    files = made.get("files") if isinstance(made, Mapping) else None
    form = {key: value for key, value in wanted.items() if key != "kinds"}
    if not isinstance(files, Mapping) or {**made, **form} != made:
        return None
    if not set(wanted["kinds"]) <= set(files):
        return None
    return [str(name) for kind in wanted["kinds"] if (name := files[kind]) is not None]


def _is_one_picture(path: Path) -> bool:
    """Whether a study is a picture of one page; several are a volume."""
    if suffix_of(path) not in PICTURE_SUFFIXES:
        return False
    with Image.open(path) as picture:
        return getattr(picture, "n_frames", 1) == 1


def _readable(path: Path) -> bool:
    """Whether a file is there and can be read to its end."""
    try:
        if path.suffix == ".gz":
            with igzip.open(path) as file:
                while file.read(1 << 20):
                    pass
        elif path.suffix == ".dcm":
            return _whole_dicom(path)
        else:
            with Image.open(path) as picture:
                picture.load()
    except Exception:  # whatever a damaged file raises
        return False
    return True


def _whole_dicom(path: Path) -> bool:
    """Whether the last element of a DICOM file is as long as it says; pydicom takes a short one."""
    import pydicom

    read = pydicom.dcmread(path)
    last = read.get_item(max(read.keys()))
    stated = getattr(last, "length", None)  # of sequences, a short one is an error by itself
    return stated in (None, UNDEFINED_LENGTH) or len(last.value) == stated


def room_needed(cases: Sequence[Case], *, dicom_bytes: float = 0) -> int:
    """Bytes that the results of studies will take, roughly, from the headers of some of them.

    Parameters
    ----------
    dicom_bytes : float
        Of the DICOM objects of a study, a voxel.
    """
    some = cases[:: max(1, math.ceil(len(cases) / SAMPLE))]
    found = sum(map(_result_bytes, some)) * (1 + dicom_bytes / VOXEL_BYTES)
    return int(len(cases) * found // max(1, len(some)))


def _result_bytes(case: Case) -> int:
    """Bytes of a study's result; 0 where its header cannot be read, as its inference will tell."""
    try:
        path = Path(case["image"]).expanduser()
        suffix = suffix_of(path)
        if suffix in PICTURE_SUFFIXES:
            with Image.open(path) as picture:
                return PIXEL_BYTES * math.prod(picture.size)
        if suffix in (".nii.gz", ".nii", ".mgz", ".mgh"):
            if suffix.endswith("z"):
                check_packed_header(path, MAX_VOXELS)
            image: Any = nib.load(path)
            return VOXEL_BYTES * math.prod(image.shape)
        files = path.iterdir() if path.is_dir() else [path]  # of DICOM, two bytes a voxel
        return VOXEL_BYTES * sum(file.stat().st_size for file in files) // 2
    except Exception:
        return 0
