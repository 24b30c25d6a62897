"""What is kept of every slice, in memory or in files: features, foreground, lesion, origin."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcmiad_monai.data.studies import patient_of
from mcmiad_monai.files.leftovers import partial_path
from mcmiad_monai.files.room import room_for
from mcmiad_monai.networks.score import INTENSITY_CELL, foreground_of, intensity_of

#: Type of the kept numbers; masks are packed bits.
DTYPES: dict[str, type] = {
    "features": np.float16,
    "intensity": np.float16,
    "foreground": np.uint8,
    "lesion": np.uint8,
}
INDEX = "index.json"


@dataclass(frozen=True)
class SliceRecord:
    """The origin of a slice, and whether it is anomalous."""

    case: str
    index: int
    anomalous: bool
    patient: str
    modality: str = ""


@dataclass(frozen=True)
class FeatureBlock:
    """Kept slices of one source.

    Attributes
    ----------
    records : list of SliceRecord
        One for each of the n slices.
    features : ndarray (n, C, g, g) of float16
        What the encoder gave.
    foreground, lesion : ndarray (n, ⌈size²/8⌉) of uint8
        Masks on the network grid, packed.
    intensity : ndarray (n, 1, size / 4, size / 4) of float16, optional
        See :func:`~mcmiad_monai.networks.score.intensity_of`.
    size : int
        Pixels a side of the masks.
    failures : dict
        Case → message, of the cases that could not be read.
    """

    records: list[SliceRecord]
    features: np.ndarray
    foreground: np.ndarray
    lesion: np.ndarray
    size: int
    failures: dict[str, str] = field(default_factory=dict)
    intensity: np.ndarray | None = None


class FeatureWriter:
    """Collects slices, batch by batch, in memory or in a folder that appears whole.

    Parameters
    ----------
    shape : (int, int, int)
        Channels and grid of the features of a slice.
    size : int
        Pixels a side of the masks.
    folder : Path, optional
        Where the files go; None keeps everything in memory.
    cases : sequence of mapping
        Cases of all slices, whose numbers stand for their names in the folder.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        size: int,
        folder: Path | None = None,
        cases: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.shape, self.size, self.folder, self.cases = shape, size, folder, cases
        self.records: list[SliceRecord] = []
        self.failures: dict[str, str] = {}
        self._batches: dict[str, list[np.ndarray]] = defaultdict(list)
        if folder is not None:
            self._partial = partial_path(folder)
            self._partial.mkdir(parents=True)

    def append(
        self,
        records: Sequence[SliceRecord],
        features: np.ndarray,
        images: Tensor,
        lesion: Tensor,
    ) -> None:
        """Add n slices: features (n, C, g, g), images (n, 1 or 3, size, size), masks (n, 1, …)."""
        self.records += records
        rows = {
            "features": features,
            "intensity": intensity_of(images).half().numpy(),
            "foreground": pack(foreground_of(images)),
            "lesion": pack(lesion),
        }
        for name, batch in rows.items():
            if self.folder is None:
                self._batches[name].append(batch)
            else:
                with room_for(self.folder), (self._partial / name).open("ab") as file:
                    file.write(batch.tobytes())

    def finish(self) -> FeatureBlock:
        """Everything that was added."""
        if self.folder is not None and self.records:
            index = nameless_index(self.records, self.failures, self.cases)
            (self._partial / INDEX).write_text(json.dumps(index), encoding="utf-8")
            with suppress(OSError):  # another process was faster, with the same content
                self._partial.replace(self.folder)
            block = open_block(self.folder, self.shape, self.size, self.cases)
            return replace(block, failures=self.failures)
        arrays = {}
        for name, shape in _shapes(self.shape, self.size).items():
            none: np.ndarray[Any, np.dtype[Any]] = np.zeros((0, *shape), DTYPES[name])
            arrays[name] = np.concatenate([none, *self._batches.pop(name, [])])
        return FeatureBlock(self.records, size=self.size, failures=self.failures, **arrays)

    def clean(self) -> None:
        """Remove what is not finished."""
        if self.folder is not None:
            shutil.rmtree(self._partial, ignore_errors=True)


def nameless_index(
    records: Sequence[SliceRecord],
    failures: Mapping[str, str],
    cases: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What a folder says of its slices: numbers of cases, for names may be those of patients."""
    number = {case["case"]: n for n, case in enumerate(cases)}
    rows = [(number[r.case], r.index, r.anomalous, r.modality) for r in records]
    return {"slices": rows, "failures": [number[name] for name in failures]}


def open_block(
    folder: Path, shape: tuple[int, int, int], size: int, cases: Sequence[Mapping[str, Any]]
) -> FeatureBlock:
    """Slices of a folder that were kept of these cases; the arrays are mapped, not read."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    records = [
        SliceRecord(cases[n]["case"], k, anomalous, patient_of(cases[n]), modality)
        for n, k, anomalous, modality in index["slices"]
    ]
    again = f"it could not be read when its features were kept; to see why, delete {folder}"
    failures = {cases[n]["case"]: again for n in index["failures"]}
    arrays = {
        name: np.memmap(folder / name, DTYPES[name], mode="r", shape=(len(records), *row))
        for name, row in _shapes(shape, size).items()
    }
    return FeatureBlock(records, size=size, failures=failures, **arrays)


def _shapes(shape: tuple[int, int, int], size: int) -> dict[str, tuple[int, ...]]:
    bits = ((size**2 + 7) // 8,)
    side = size // INTENSITY_CELL
    return {"features": shape, "intensity": (1, side, side), "foreground": bits, "lesion": bits}


def pack(masks: Tensor) -> np.ndarray:
    """Boolean masks (n, 1, S, S) as bits, (n, ⌈S²/8⌉) uint8."""
    return np.packbits(masks.flatten(1).numpy(), axis=1)


def unpack(bits: np.ndarray, size: int) -> Tensor:
    """Inverse of :func:`pack`: (n, 1, size, size) bool."""
    flat = np.unpackbits(np.asarray(bits), axis=1, count=size * size)
    return torch.from_numpy(flat.reshape(-1, 1, size, size).astype(bool))
