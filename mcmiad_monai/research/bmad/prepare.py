"""BMAD's brain and liver sets made from the volumes they come from.

The steps are those of BMAD's own preparation as far as they are known; the released liver files
came from another script, so that exact reproduction is not possible. ``clean=True`` leaves out what
a benchmark should not have:

- one window of Hounsfield units for both CT sources. As released, training slices (BTCV) keep
  their full range and test slices (LiTS) are clipped to [−200, 250] HU: a difference between
  training and test that has nothing to do with disease;
- grey PNG instead of matplotlib's ``bone`` colours, which bend the grey scale;
- anomalous slices are those with lesion. As released, every 8th (test) or 10th (valid) slice of a
  patient is called anomalous, and nothing looks whether it has tumour;
- normal and anomalous brain slices come from the same patients, who are drawn. As released, they
  come from different ones, ranked by how many slices without tumour they have: the patients with
  the largest tumours are the anomalous ones;
- masks are 0 and 255. As released, masks of the brain are its labels, stretched to the full range
  and in ``bone`` colours as well.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import HistogramNormalize, LoadImage, ScaleIntensity, ScaleIntensityRange
from numpy.typing import NDArray
from tqdm import tqdm

from mcmiad_monai.data.cases.names import CaseError
from mcmiad_monai.errors import root_message
from mcmiad_monai.files import replace_atomically, write_text
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.bmad.layout import Pair, find_pairs

logger = logging.getLogger(__name__)

#: Axial slices of BraTS that BMAD uses.
BRAIN_SLICES = range(60, 100)
#: Every how many slices of that range is taken as anomalous, by split.
BRAIN_STEP = {"valid": 10, "test": 8}
#: Patients of the release by what they give: 625 with a slice without tumour, 626 without any.
BRAIN_GROUPS = {"train/good": 424, "test/good": 162, "valid/good": 39}
BRAIN_ILL_GROUPS = {"valid/Ungood": 11, "test/Ungood": 615}
#: Shares of the patients in a clean preparation: those that anomalous slices have in the release.
BRAIN_SHARES = {"valid": 11 / 1251, "test": 615 / 1251}
#: Share of LiTS patients in valid: 166 of its 1,659 slices.
LIVER_SHARES = {"valid": 0.1}
BTCV_LIVER, LITS_LIVER, LITS_LESION = 6, 1, 2
HU_WINDOW = (-200.0, 250.0)

Plane = NDArray[Any]
#: Folder, stem of the file, picture and mask of a slice.
Slice = tuple[str, str, Plane, Plane]


@dataclass(frozen=True)
class Prepared:
    """What a preparation wrote: PNG files by folder, and volumes that could not be used."""

    root: Path
    counts: dict[str, int]
    failures: dict[str, str]


def prepare_brain(
    source: str | Path,
    out: str | Path,
    *,
    clean: bool = False,
    slices: Sequence[int] = BRAIN_SLICES,
    shares: dict[str, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Prepared:
    """Write ``Brain_AD`` from BraTS2021: ``*_flair.nii.gz`` with ``*_seg.nii.gz`` beside it.

    Axial slices as stored, min–max each. A volume that cannot be used is reported and passed over.

    Parameters
    ----------
    source : path
        Folder with one folder a patient, or with all files.
    out : path
        New or empty folder; ``Brain_AD`` is made in it.
    clean : bool
        See the top of the module.
    slices : sequence of int
        Indices along the third axis.
    shares : dict, optional
        Share of the patients in ``valid`` and ``test`` of a clean preparation.
    seed : int
        Seed of what is drawn: all patients if clean, else which anomalous ones are in valid.

    Raises
    ------
    CaseError
        If no pair of files is found, or there are too few patients for all parts.
    ValueError
        If there are no slices, or shares without ``clean``.
    FileExistsError
        If the folder is not empty.
    """
    if not slices:
        raise ValueError("slices is empty; give indices along the third axis.")
    if shares is not None and not clean:
        raise ValueError("shares are of a clean preparation; the release ranks patients instead.")
    root = _empty(Path(out)) / "Brain_AD"
    pairs = find_pairs(Path(source), "flair", "seg")
    failures: dict[str, str] = {}
    if clean:
        roles = split_of(pairs, shares or BRAIN_SHARES, seed)
    else:
        roles = rank_patients(_healthy_slices(pairs, slices, failures, progress), seed)

    def planes(pair: Pair) -> Iterator[Slice]:
        volume, labels = _load(pair)
        for k in _inside(slices, labels, pair):
            flair, marked = volume[:, :, k], labels[:, :, k]
            folder = _folder_of(roles[pair.name], k, bool(marked.any()), slices[0])
            if folder is None:
                continue
            shown = _upright(_to_bytes(flair)) if clean else _bone(flair)
            mask = _upright(255 * (marked > 0)) if clean else _bone(marked)
            yield folder, f"{pair.name}_{k}", shown, mask

    options = {"clean": clean, "seed": seed, "slices": list(slices), "shares": shares}
    return _write(root, pairs, planes, options=options, failures=failures, progress=progress)


def prepare_liver(
    btcv: str | Path,
    lits: str | Path,
    out: str | Path,
    *,
    clean: bool = False,
    shares: dict[str, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Prepared:
    """Write ``Liver_AD``: train on BTCV (label 6 is liver), valid and test on LiTS.

    Slices with liver, min–max to 8 bit per slice, times the liver mask, flipped upside down, and
    histogram-equalised without the black outside. Lesion is label 2 of LiTS. Patients of LiTS are
    in valid or in test; the release divides slices, so that some patients are in both.

    Parameters
    ----------
    btcv : path
        ``img<number>.nii.gz`` and ``label<number>.nii.gz``, in subfolders or not.
    lits : path
        ``volume-<number>.nii`` and ``segmentation-<number>.nii``.
    out, clean, seed
        See :func:`prepare_brain`.
    shares : dict, optional
        Share of LiTS's patients in ``valid``.
    """
    root = _empty(Path(out)) / "Liver_AD"
    healthy = find_pairs(Path(btcv), "img", "label", prefix="btcv_")
    ill = find_pairs(Path(lits), "volume", "seg", prefix="lits_")
    splits = split_of(ill, shares or LIVER_SHARES, seed, rest="test")

    def planes(pair: Pair) -> Iterator[Slice]:
        volume, labels = _load(pair)
        split = splits.get(pair.name, "train")
        train = split == "train"
        liver = labels == BTCV_LIVER if train else labels >= LITS_LIVER
        if not liver.any():
            raise CaseError(f"{pair.name} has no liver among its labels {np.unique(labels)}.")
        for k in np.flatnonzero(liver.any((0, 1))).tolist():
            plane = _window(volume[:, :, k]) if clean or not train else volume[:, :, k]
            shown = _equalised(_to_bytes(plane) * liver[:, :, k])[::-1]
            lesion = (labels[:, :, k] == LITS_LESION)[::-1]
            kind = "Ungood" if lesion.any() and not train else "good"
            yield f"{split}/{kind}", f"{pair.name}_{k}", shown, 255 * lesion

    options = {"clean": clean, "seed": seed, "shares": shares}
    both = [*healthy, *ill]
    return _write(root, both, planes, options=options, failures={}, progress=progress)


def split_of(
    pairs: Sequence[Pair], shares: dict[str, float], seed: int, rest: str = "train"
) -> dict[str, str]:
    """Split of each patient, drawn; shares are rounded, and every split has at least one patient.

    Raises
    ------
    CaseError
        If there are fewer patients than splits.
    ValueError
        If a share is of no known split, or nothing is left.
    """
    each = shares.values()
    if not shares.keys() <= BRAIN_STEP.keys() or min(each) <= 0 or sum(each) >= 1:
        raise ValueError(f"shares are {shares}; expected shares of valid and test, below 1 in all.")
    names = sorted(pair.name for pair in pairs if pair.labels is not None)
    if len(names) <= len(shares):
        need = f"{len(shares) + 1} are needed for {', '.join((*shares, rest))}"
        raise CaseError(f"{len(names)} volumes have a segmentation; at least {need}.")
    drawn = np.random.default_rng(seed).permutation(names).tolist()
    return dict(zip(drawn, _in_shares(len(names), shares, rest), strict=True))


def rank_patients(healthy: dict[str, int], seed: int) -> dict[str, str]:
    """Folder that each patient's slices go to, as in the release.

    Patients are ranked by how many slices without tumour they have: the first 424 of 625 are for
    training, the next 162 are normal test and the last 39 normal validation patients. Of those who
    have none, 11 of 626 are for validation, drawn here, and the others for test. Equal ranks are
    ordered by name, which the release did otherwise.

    Parameters
    ----------
    healthy : dict
        Slices without tumour by patient.

    Raises
    ------
    CaseError
        If there are too few patients of either kind.
    """
    some = sorted((name for name in healthy if healthy[name]), key=lambda n: (-healthy[n], n))
    none = sorted(name for name in healthy if not healthy[name])
    if len(some) < len(BRAIN_GROUPS) or len(none) < len(BRAIN_ILL_GROUPS):
        raise CaseError(
            f"{len(some)} patients have slices without tumour and {len(none)} have none; at least "
            f"{len(BRAIN_GROUPS)} and {len(BRAIN_ILL_GROUPS)} are needed, or use clean=True."
        )
    drawn = np.random.default_rng(seed).permutation(none).tolist()
    return {
        **dict(zip(some, _in_proportion(len(some), BRAIN_GROUPS), strict=True)),
        **dict(zip(drawn, _in_proportion(len(none), BRAIN_ILL_GROUPS), strict=True)),
    }


def _in_proportion(count: int, groups: dict[str, int]) -> list[str]:
    """Groups of ``count`` patients in order, in the proportion of those of the release."""
    total, (first, *others) = sum(groups.values()), groups
    # from the last on, so that what rounding leaves goes to the first
    shares = {name: groups[name] / total for name in reversed(others)}
    return _in_shares(count, shares, first)[::-1]


def _in_shares(count: int, shares: dict[str, float], rest: str) -> list[str]:
    """Splits of ``count`` patients in order: shares, rounded and at least one, then the rest."""
    splits: list[str] = []
    for k, (split, share) in enumerate(shares.items()):
        left = count - len(splits) - (len(shares) - k)  # one for each that follows
        splits += [split] * min(max(1, round(share * count)), left)
    return splits + [rest] * (count - len(splits))


def _healthy_slices(
    pairs: Sequence[Pair], slices: Sequence[int], failures: dict[str, str], progress: bool
) -> dict[str, int]:
    """Slices without tumour of each patient; what cannot be read goes to the failures."""
    healthy: dict[str, int] = {}
    for pair in tqdm(pairs, "segmentations", disable=not progress):
        try:
            labels = _load_labels(pair)
            ill = [bool(labels[:, :, k].any()) for k in _inside(slices, labels, pair)]
            healthy[pair.name] = ill.count(False)
        except Exception as error:
            _leave_out(pair, error, failures)
    return healthy


def _leave_out(pair: Pair, error: Exception, failures: dict[str, str]) -> None:
    failures[pair.name] = root_message(error)
    logger.error("%s left out: %s", pair.name, failures[pair.name])


def _folder_of(role: str, k: int, ill: bool, first: int) -> str | None:
    """Folder of slice ``k`` of a patient whose role is ``test`` or ``test/good``, if it is used."""
    split, _, kind = role.partition("/")
    kind = kind or ("Ungood" if ill else "good")
    if kind == "good":
        return None if ill else f"{split}/good"
    used = split in BRAIN_STEP and (k - first) % BRAIN_STEP[split] == 0
    return f"{split}/Ungood" if used else None


def _inside(slices: Sequence[int], labels: Plane, pair: Pair) -> list[int]:
    """Slices that a volume has."""
    inside = [k for k in slices if k < labels.shape[2]]
    if not inside:
        raise CaseError(f"{pair.image.name} has {labels.shape[2]} slices, none of those wanted.")
    return inside


def _load(pair: Pair) -> tuple[Plane, Plane]:
    """Volume and segmentation (X, Y, Z), as stored."""
    labels = _load_labels(pair)
    volume = np.asarray(LoadImage(image_only=True)(pair.image))
    if volume.shape != labels.shape:
        raise CaseError(
            f"{pair.image.name} is {volume.shape} and its segmentation {labels.shape}; both must "
            "have one shape."
        )
    if not np.isfinite(volume).all():
        raise CaseError(f"{pair.image.name} has voxels that are NaN or infinite.")
    return volume, labels


def _load_labels(pair: Pair) -> Plane:
    """Segmentation (X, Y, Z)."""
    if pair.labels is None:
        raise CaseError(f"{pair.image} has no segmentation; put it beside the volume.")
    labels: Plane = np.asarray(LoadImage(image_only=True)(pair.labels))
    if labels.ndim != 3:
        raise CaseError(f"{pair.labels.name} has the shape {labels.shape}; 3-D is needed.")
    return np.asarray(np.rint(labels), np.int16)


def _to_bytes(plane: Plane) -> Plane:
    """Min–max of a slice to 0 … 255; a slice without contrast is black."""
    return (255 * _stretched(plane)).astype(np.uint8)


def _stretched(plane: Plane) -> Plane:
    """Min–max of a slice to 0 … 1; a slice without contrast is 0."""
    if plane.max() <= plane.min():
        return np.zeros(plane.shape, np.float32)
    scaled = ScaleIntensity(minv=0, maxv=1)(plane[None].astype(np.float32))
    return np.asarray(scaled[0])


def _window(plane: Plane) -> Plane:
    """Clip to the abdominal window."""
    low, high = HU_WINDOW
    clip = ScaleIntensityRange(a_min=low, a_max=high, b_min=low, b_max=high, clip=True)
    return np.asarray(clip(plane[None].astype(np.float32))[0])


def _equalised(plane: Plane) -> Plane:
    """Histogram equalisation that leaves black out, and nothing else black."""
    inside = plane > 0
    if not inside.any():
        return plane
    spread = HistogramNormalize(num_bins=256, min=1, max=255, mask=inside[None])
    equal = np.asarray(spread(plane[None].astype(np.float32)))[0]
    return np.where(inside, equal, 0).astype(np.uint8)


def _bone(plane: Plane) -> Plane:
    """A slice in matplotlib's colours, min–max, (rows, columns, 4)."""
    from matplotlib import colormaps

    return np.asarray(colormaps["bone"](_stretched(plane), bytes=True))


def _upright(plane: Plane) -> Plane:
    """Rows from front to back for arrays stored towards the left and the back, as BraTS is."""
    return np.asarray(plane.T)


def _write(
    root: Path,
    pairs: Sequence[Pair],
    planes: Callable[[Pair], Iterator[Slice]],
    *,
    options: dict[str, Any],
    failures: dict[str, str],
    progress: bool,
) -> Prepared:
    """Write the slices of every pair; a volume that fails is reported and passed over."""
    counts: Counter[str] = Counter()
    usable = [pair for pair in pairs if pair.name not in failures]
    for pair in tqdm(usable, "volumes", disable=not progress):
        try:
            for folder, stem, shown, mask in planes(pair):
                _save(root / folder / "img" / f"{stem}.png", shown)
                if folder.endswith("Ungood"):
                    _save(root / folder / "anomaly_mask" / f"{stem}.png", mask)
                counts[folder] += 1
        except Exception as error:
            _leave_out(pair, error, failures)
    found: dict[str, Any] = {"counts": dict(counts), "failures": failures}
    content = {"options": options, "volumes": len(pairs), **found, **produced_with()}
    write_text(root / "prepared.json", json.dumps(content, indent=1))
    return Prepared(root, **found)


def _save(path: Path, plane: Plane) -> None:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(plane).astype(np.uint8))
    replace_atomically(path, picture.save)


def _empty(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder.")
    return folder
