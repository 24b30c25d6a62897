"""What preparing BMAD's brain and liver sets from their volumes has in common.

The steps are those of BMAD's own scripts. ``clean=True`` leaves out what a benchmark should not
have:

- one window of Hounsfield units for both CT sources. As released, training slices (BTCV) keep
  their full range and test slices (LiTS) are clipped to [−200, 250] HU: a difference between
  training and test that has nothing to do with disease;
- plain histogram equalisation of the liver. As released, the new greys 1 to 149 are lifted to 30 to
  149;
- grey PNG instead of matplotlib's ``bone`` colours, which bend the grey scale;
- anomalous slices are those with lesion. As released, every 8th (test) or 10th (valid) slice of a
  patient is called anomalous, and nothing looks whether it has tumour;
- normal and anomalous brain slices come from the same patients, who are drawn. As released, they
  come from different ones: the patients with the largest tumours are the anomalous ones;
- masks are 0 and 255. As released, masks of the brain are its labels, stretched to the full range
  and in ``bone`` colours as well.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import LoadImage, ScaleIntensity
from numpy.typing import NDArray
from tqdm import tqdm

from mcmiad_monai.data.cases.names import CaseError
from mcmiad_monai.errors import root_message
from mcmiad_monai.files.writing import replace_atomically, write_text
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.bmad.layout import Pair

logger = logging.getLogger(__name__)

Plane = NDArray[Any]
#: Folder, stem of the file, picture and mask of a slice.
Slice = tuple[str, str, Plane, Plane]


@dataclass(frozen=True)
class Prepared:
    """What a preparation wrote: PNG files by folder, and volumes that could not be used.

    ``notes`` say what differs from the release.
    """

    root: Path
    counts: dict[str, int]
    failures: dict[str, str]
    notes: list[str] = field(default_factory=list)


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
    if not shares.keys() <= {"valid", "test"} or min(each) <= 0 or sum(each) >= 1:
        raise ValueError(f"shares are {shares}; expected shares of valid and test, below 1 in all.")
    names = sorted(pair.name for pair in pairs if pair.labels is not None)
    if len(names) <= len(shares):
        need = f"{len(shares) + 1} are needed for {', '.join((*shares, rest))}"
        raise CaseError(f"{len(names)} volumes have a segmentation; at least {need}.")
    drawn = np.random.default_rng(seed).permutation(names).tolist()
    return dict(zip(drawn, _in_shares(len(names), shares, rest), strict=True))


def write_slices(
    root: Path,
    pairs: Sequence[Pair],
    planes: Callable[[Pair], Iterator[Slice]],
    *,
    options: dict[str, Any],
    failures: dict[str, str],
    notes: list[str],
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
    found: dict[str, Any] = {"counts": dict(counts), "failures": failures, "notes": notes}
    content = {"options": options, "volumes": len(pairs), **found, **produced_with()}
    write_text(root / "prepared.json", json.dumps(content, indent=1))
    return Prepared(root, **found)


def _save(path: Path, plane: Plane) -> None:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(plane).astype(np.uint8))
    replace_atomically(path, picture.save)


def new_folder(folder: Path) -> Path:
    """A folder that does not exist yet or is empty; others are refused."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder.")
    return folder


def _in_shares(count: int, shares: dict[str, float], rest: str) -> list[str]:
    """Splits of ``count`` patients in order: shares, rounded and at least one, then the rest."""
    splits: list[str] = []
    for k, (split, share) in enumerate(shares.items()):
        left = count - len(splits) - (len(shares) - k)  # one for each that follows
        splits += [split] * min(max(1, round(share * count)), left)
    return splits + [rest] * (count - len(splits))


def _leave_out(pair: Pair, error: Exception, failures: dict[str, str]) -> None:
    failures[pair.name] = root_message(error)
    logger.error("%s left out: %s", pair.name, failures[pair.name])


def load_pair(pair: Pair) -> tuple[Plane, Plane]:
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


def to_bytes(plane: Plane) -> Plane:
    """Min–max of a slice to 0 … 255; a slice without contrast is black."""
    return (255 * stretched(plane)).astype(np.uint8)


def stretched(plane: Plane) -> Plane:
    """Min–max of a slice to 0 … 1; a slice without contrast is 0."""
    if plane.max() <= plane.min():
        return np.zeros(plane.shape, np.float32)
    scaled = ScaleIntensity(minv=0, maxv=1)(plane[None].astype(np.float32))
    return np.asarray(scaled[0])
