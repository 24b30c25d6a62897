"""The real data sets of the benchmark, each as folds of cases and what may be said about it.

The images are not part of the project. DATA has one folder a set:

- ``brain_flair_lgg/<patient>/flair.nii.gz`` and ``mask.nii.gz``: TCGA-LGG; masks: Buda, Saha,
  Mazurowski, Comput Biol Med 2019.
- ``ms_flair/images`` and ``masks``: Muslim et al., Mendeley Data 8bctsm8jz7.
- ``oct_dme/img`` and ``mask``: Duke DME; Chiu et al., Biomed Opt Express 2015.
- ``cxr_nih/good`` and ``Ungood``: NIH ChestX-ray8; Wang et al., CVPR 2017.
- ``liver_ircadb_p17/img``, ``liver``, ``mask``: 3D-IRCADb-01, patient 17.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from mcmiad_monai.data.cases.find import find_cases

Case = dict[str, Any]
#: Scans of the Duke set are numbered patient by patient.
SCANS_PER_PATIENT, PATIENTS_LEFT_OUT = 11, 2
#: Of the LGG patients; the others are the test part.
LGG_TRAIN, LGG_VALIDATION_FROM, LGG_LEAST_LESION = 50, 40, 50
#: Shares of the normal patients with chest X-rays, and of the ill ones that validate.
CXR_TRAIN, CXR_VALIDATION = 0.5, 0.2
#: Neighbouring slices of the liver that stay in one part.
LIVER_BLOCK = 5


@dataclass(frozen=True)
class Fold:
    """Cases to fit on, to choose and calibrate with, and to report."""

    train: list[Case]
    validation: list[Case]
    test: list[Case]


@dataclass(frozen=True)
class RealSet:
    """One data set and its protocol.

    Attributes
    ----------
    folds : list of Fold
        Test slices of all folds are pooled.
    image_labels, pixel_labels : bool
        Whether figures of images, and of pixels, make sense on the test part.
    crossed : bool
        Validation cases are normals alone: thresholds and choice of a fold come from the others.
    symmetric : bool
        Whether a slice may be compared with its mirror image.
    volumes : bool
        Whether a slice has neighbours.
    bordered : bool
        Whether there is background around the foreground, to crop.
    dark : bool
        Whether lesions are darker than what is around them.
    least_lesion : int
        Voxels; a slice with fewer, but any, is left out.
    options : dict
        Of :func:`~mcmiad_monai.transforms.preprocessing`.
    """

    name: str
    title: str
    modality: str
    folds: list[Fold]
    note: str
    image_labels: bool = True
    pixel_labels: bool = True
    crossed: bool = False
    symmetric: bool = False
    volumes: bool = False
    bordered: bool = False
    dark: bool = False
    slice_range: tuple[float, float] = (0.0, 1.0)
    least_lesion: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def flair(data: Path) -> RealSet:
    """TCGA-LGG: patients sorted by name and permuted; 40 to fit, 10 to validate, 30 to report."""
    cases = sorted(find_cases(data / "brain_flair_lgg"), key=lambda c: Path(c["image"]).parent.name)
    ordered = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]
    middle = ordered[LGG_VALIDATION_FROM:LGG_TRAIN]
    return RealSet(
        "flair",
        "FLAIR, low-grade glioma",
        "brain_mri",
        [Fold(ordered[:LGG_VALIDATION_FROM], middle, ordered[LGG_TRAIN:])],
        "normal slices come from tumour patients; slices with 1 to 49 lesion voxels are left out",
        symmetric=True,
        bordered=True,
        volumes=True,
        slice_range=(0.29, 0.83),
        least_lesion=LGG_LEAST_LESION,
    )


def multiple_sclerosis(data: Path) -> RealSet:
    """MS as a disease that was never seen: fitted and chosen on LGG, pixels alone."""
    folder, known = data / "ms_flair", flair(data)
    # the first three digits tell the patient
    cases = pictures(folder / "images", folder / "masks", patient=lambda name: name[:3])
    return RealSet(
        "ms",
        "FLAIR, multiple sclerosis, fitted on glioma patients",
        "brain_mri",
        [Fold(known.folds[0].train, known.folds[0].validation, cases)],
        "30 slices with tiny lesions in mixed planes, none without: pixels alone",
        image_labels=False,
        symmetric=True,
        bordered=True,
        slice_range=known.slice_range,
        least_lesion=known.least_lesion,
    )


def oct_dme(data: Path) -> RealSet:
    """Duke DME: five folds that leave two patients out each; fitted on scans without fluid."""
    folder = data / "oct_dme"

    def patient(name: str) -> str:
        return f"p{int(name.rsplit('_', 1)[1]) // SCANS_PER_PATIENT}"

    cases = pictures(folder / "img", folder / "mask", patient=patient)
    patients = sorted({case["patient"] for case in cases})
    dry = [case for case in cases if not case["anomalous"]]
    fluid = [case for case in cases if case["anomalous"]]
    folds = []
    for start in range(0, len(patients), PATIENTS_LEFT_OUT):
        left = set(patients[start : start + PATIENTS_LEFT_OUT])
        train = [case for case in dry if case["patient"] not in left]
        validation, test = ([c for c in part if c["patient"] in left] for part in (dry, fluid))
        folds += [Fold(train, validation, test)] if test else []
    return RealSet(
        "oct",
        "retina OCT, diabetic macular oedema",
        "retina_oct",
        folds,
        "scans without fluid are of diseased eyes as well: pixels alone",
        image_labels=False,
        crossed=True,
        dark=True,
    )


def chest_xray(data: Path) -> RealSet:
    """NIH: fitted on normal patients; those of both classes are in the test part alone.

    The recipe is that of ``retina_oct``, which takes a whole picture for foreground: the package
    has none for X-rays.
    """
    known = {
        folder: pictures(data / "cxr_nih" / folder, None, patient=lambda name: name.split("_")[0])
        for folder in ("good", "Ungood")
    }
    for folder, cases in known.items():
        for case in cases:
            case["anomalous"] = folder == "Ungood"
    normal, ill = ({case["patient"] for case in cases} for cases in known.values())
    shuffled = [
        np.random.default_rng(0).permutation(sorted(part)).tolist()
        for part in (normal - ill, ill - normal)
    ]
    count, own = len(shuffled[0]), len(shuffled[1])
    fit, stop = int(CXR_TRAIN * count), int((CXR_TRAIN + CXR_VALIDATION) * count)
    train = set(shuffled[0][:fit])
    validation = {*shuffled[0][fit:stop], *shuffled[1][: int(CXR_VALIDATION * own)]}
    everyone = known["good"] + known["Ungood"]
    rest = [case for case in everyone if case["patient"] not in train | validation]
    return RealSet(
        "cxr",
        "chest X-ray, pneumonia",
        "retina_oct",
        [Fold(*([c for c in everyone if c["patient"] in p] for p in (train, validation)), rest)],
        "labels were mined from reports and are noisy; the intensity recipe is that of retina_oct",
        pixel_labels=False,
    )


def liver(data: Path) -> RealSet:
    """3D-IRCADb patient 17: blocks of neighbouring slices take turns in the three parts."""
    folder = data / "liver_ircadb_p17"
    cases = pictures(folder / "img", folder / "mask", patient=lambda name: f"slice_{name}")
    for case in cases:
        case["organ"] = str(folder / "liver" / Path(case["image"]).name)
    normal = [case for case in cases if not case["anomalous"]]
    tumour = [case for case in cases if case["anomalous"]]
    parts: list[list[Case]] = [[], [], []]
    for number, case in enumerate(normal):
        parts[(0, 1, 0, 2)[number // LIVER_BLOCK % 4]].append(case)
    for number, case in enumerate(tumour):
        parts[(1, 2, 2)[number // LIVER_BLOCK % 3]].append(case)
    return RealSet(
        "liver",
        "liver CT, one patient: smoke figures",
        "liver_ct",
        [Fold(*parts)],
        "ONE PATIENT: parts share it, intervals are over slices, and no figure says anything "
        "about other patients",
        bordered=True,
        dark=True,
        options={"region": "organ"},
    )


SETS: dict[str, Callable[[Path], RealSet]] = {
    "flair": flair,
    "oct": oct_dme,
    "cxr": chest_xray,
    "ms": multiple_sclerosis,
    "liver": liver,
}


def pictures(images: Path, masks: Path | None, *, patient: Callable[[str], str]) -> list[Case]:
    """Cases of pictures; `patient` tells it by the file's name without suffix."""
    cases = []
    for path in sorted(p for p in images.iterdir() if p.suffix in (".png", ".jpg")):
        mask = None if masks is None else masks / path.name
        ill = None if mask is None else bool((np.asarray(Image.open(mask)) > 0).any())
        cases.append(
            {
                "case": path.stem,
                "image": str(path),
                "label": None if mask is None else str(mask),
                "anomalous": ill,
                "patient": patient(path.stem),
            }
        )
    return cases


def lesion_voxels(cases: list[Case]) -> dict[tuple[str, int], int]:
    """Lesion voxels of each slice (case, index) of the volumes among cases."""
    found = {}
    for case in cases:
        if str(case["image"]).endswith(".nii.gz"):
            counts = np.asarray(nib.load(case["label"]).dataobj).sum((0, 1))
            found.update({(case["case"], k): int(n) for k, n in enumerate(counts)})
    return found
