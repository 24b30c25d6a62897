"""Cases on disk → normalised canonical volumes → slices for the network.

A case that cannot be read is reported and left out; it never stops the cohort.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mcmiad_monai.data.cases.names import CaseError, plain_name
from mcmiad_monai.errors import root_message
from mcmiad_monai.files.reading import input_digest
from mcmiad_monai.modality import Modality, get_modality
from mcmiad_monai.transforms import (
    MIN_FOREGROUND,
    on_whole_grid,
    preprocessing,
    select_slices,
    slice_batch,
)
from mcmiad_monai.transforms.metadata import INPUT, MODALITY

logger = logging.getLogger(__name__)


class StudyDataset(Dataset[dict[str, Any]]):
    """Cases through a transform; a case that fails gives an error message instead of an exception.

    Parameters
    ----------
    data : sequence of dict
        Case dictionaries with the keys ``case`` and ``image``.
    transform : callable
        Usually a Compose that starts with ``LoadVolumed``.

    Returns
    -------
    dict
        The transformed case, with its name in ``image.meta["case"]``; or
        ``{"case": name, "error": message}``.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Callable[[dict[str, Any]], Any],
    ) -> None:
        self.data = list(data)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.data[index]
        try:
            return prepare_study(case, self.transform)
        except Exception as error:
            return {"case": case["case"], "error": root_message(error)}


def prepare_study(
    case: Mapping[str, Any], transform: Callable[[dict[str, Any]], Any]
) -> dict[str, Any]:
    """A case through a transform; the image's metadata then name the case and its patient.

    They also have the digest of the input's files under `INPUT`, of an image that has files; see
    `study_digest`.

    Raises
    ------
    CaseError
        If the case was refused where it was found.
    """
    if case.get("refused"):
        raise CaseError(case["refused"])
    sample: dict[str, Any] = transform(dict(case))
    meta = sample["image"].meta
    meta["case"], meta["patient"] = plain_name(str(case["case"])), patient_of(case)
    if isinstance(case["image"], (str, os.PathLike)):
        # the region's transform takes out the mask that it has used
        meta[INPUT] = study_digest(case, organ="organ" not in sample)
    if case.get("anomalous") is not None:
        meta["anomalous"] = case["anomalous"]
    return {key: value for key, value in sample.items() if value is not None}


def study_digest(case: Mapping[str, Any], *, organ: bool) -> str:
    """SHA-256 of the files of a study's image; with `organ` of these and its organ mask, if any."""
    digest = input_digest(Path(case["image"]).expanduser())
    if not organ or case.get("organ") is None:
        return digest
    return sha256((digest + input_digest(Path(case["organ"]).expanduser())).encode()).hexdigest()


@dataclass(frozen=True)
class SliceSample:
    """One slice on the network grid.

    Attributes
    ----------
    case, index : str, int
        The study and the position along its canonical slice axis.
    image : Tensor (1, size, size)
        Normalised intensities; zero is outside the foreground. Colours, and a slice between its
        neighbours, are (3, size, size).
    lesion : Tensor (1, size, size) of bool
        True on lesion.
    anomalous : bool
        By mask, or by the folder where there is no mask.
    patient : str
        Patient of the study; the study itself where the source has no patient.
    modality : str
        Of the study.
    """

    case: str
    index: int
    image: Tensor
    lesion: Tensor
    anomalous: bool
    patient: str
    modality: str = ""


def iterate_slices(
    cases: Iterable[dict[str, Any]],
    modality: str | Modality,
    *,
    size: int = 224,
    only_normal: bool = False,
    slice_range: tuple[float, float] = (0.0, 1.0),
    min_foreground: float = MIN_FOREGROUND,
    context: int = 1,
    transform: Callable[..., Any] | None = None,
    failures: dict[str, str] | None = None,
) -> Iterator[SliceSample]:
    """Slices of all cases, one volume in memory at a time.

    Parameters
    ----------
    modality : str or Modality
        Has the slice axis.
    context : {1, 3}
        3 gives each slice between its neighbours; see :func:`~mcmiad_monai.transforms.slice_batch`.
    transform : callable, optional
        From a case to a volume ``image`` and a mask ``label``; the modality's own
        :func:`~mcmiad_monai.transforms.preprocessing` by default.
    only_normal : bool
        Keep only slices without lesion: those with an empty mask, none of a case that is known to
        be anomalous but has no mask.
    failures : dict, optional
        Receives ``case → message`` for every case that could not be read.
    """
    kind = get_modality(modality) if isinstance(modality, str) else modality
    dataset = StudyDataset(list(cases), transform or preprocessing(kind, mask_key="label"))
    for position in range(len(dataset)):
        sample = dataset[position]
        name = sample["case"]
        if "error" in sample:
            logger.error("study %s left out: %s", name, sample["error"])
            if failures is not None:
                failures[name] = sample["error"]
            continue
        case = dataset.data[position]
        known = case.get("anomalous")
        without_mask = case.get("label") is None
        chosen = select_slices(
            sample["image"],
            axis=kind.slice_axis,
            slice_range=slice_range,
            min_foreground=min_foreground,
        )
        axis, image, label = kind.slice_axis, sample["image"], sample["label"]
        whole = on_whole_grid(label)
        for k in chosen:
            # the whole mask in full resolution decides: a small lesion may vanish in a nearest
            # resize, and one at the edge lie outside the field of view
            lesion_voxels = bool((whole.select(1 + axis, k) > 0).any())
            anomalous = bool(known) if without_mask and known is not None else lesion_voxels
            if only_normal and anomalous:
                continue
            lesion = slice_batch(label, [k], axis=axis, size=size, mode="nearest")[0] > 0
            yield SliceSample(
                case=name,
                index=k,
                image=slice_batch(image, [k], axis=axis, size=size, context=context)[0],
                lesion=lesion,
                anomalous=anomalous,
                patient=patient_of(case),
                modality=image.meta[MODALITY],
            )


def patient_of(case: Mapping[str, Any]) -> str:
    """Patient of a case; the case itself where the source has no patient."""
    return str(case.get("patient") or case["case"])


def batches(samples: Iterable[SliceSample], size: int) -> Iterator[list[SliceSample]]:
    """Group samples into lists of ``size``; the last may be shorter."""
    pending: list[SliceSample] = []
    for sample in samples:
        pending.append(sample)
        if len(pending) == size:
            yield pending
            pending = []
    if pending:
        yield pending


def stack_images(samples: Sequence[SliceSample]) -> Tensor:
    """Images of a batch, (B, 1 or 3, size, size)."""
    return torch.stack([torch.as_tensor(s.image) for s in samples])
