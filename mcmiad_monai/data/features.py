"""The feature cache: the frozen encoder sees every slice once, and never again.

The images are not augmented and the encoder is frozen, so an epoch of training reads features
instead of images. They are kept as float16 (106 kB a slice for EfficientNet-B4), in memory or on
disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mcmiad_monai.data.studies import (
    batches,
    iterate_slices,
    patient_of,
    stack_images,
)
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.runtime.cpu import encoding, slices_at_once
from mcmiad_monai.training.distributed import main_first
from mcmiad_monai.transforms import MIN_FOREGROUND

logger = logging.getLogger(__name__)

#: Changes whenever the content of a cached file would change for the same input.
CACHE_FORMAT = 4

#: What is kept of every slice, and the type of its numbers; masks are packed bits.
ROW_TYPES: dict[str, type] = {"features": np.float16, "foreground": np.uint8, "lesion": np.uint8}


class TrainingDataError(RuntimeError):
    """The cases given cannot be trained on."""


@dataclass(frozen=True)
class SliceRecord:
    """Where a row of the cache came from."""

    case: str
    index: int
    anomalous: bool
    patient: str
    modality: str = ""


class FeatureDataset(Dataset[dict[str, Any]]):
    """Encoder features of the slices of cases, computed at construction and kept.

    Parameters
    ----------
    cases : sequence of dict
        Case dictionaries (``case``, ``image``, ``label``, ``anomalous``).
    encoder : FrozenEncoder
        Gives (B, C, g, g) for (B, 1, size, size).
    modality : str
        Name of the modality.
    only_normal : bool
        Keep slices without lesion only, as training needs it.
    batch_size : int, optional
        Slices in one call of the encoder; by default what suits the device.
    slice_range : (float, float)
        Share of the slices of each study to use.
    cache : {"memory", "disk"}
        Where features live. On disk they are found again by a key over encoder weights, options,
        and path, size and time of every file.
    cache_dir : str, optional
        Needed for ``"disk"``. Of several processes the first fills it, and the others read.
    preparation : mapping, optional
        Further options of :func:`~mcmiad_monai.transforms.preprocessing`.

    Returns
    -------
    dict
        ``image`` (C, g, g) float32 features, ``label`` 0/1 anomalous.

    Raises
    ------
    TrainingDataError
        If no slice is left.
    """

    _features: np.ndarray
    _foreground: np.ndarray
    _lesion: np.ndarray

    def __init__(
        self,
        cases: Sequence[dict[str, Any]],
        encoder: FrozenEncoder,
        *,
        modality: str,
        only_normal: bool = False,
        size: int = 224,
        batch_size: int | None = None,
        slice_range: Sequence[float] = (0.0, 1.0),
        min_foreground: float = MIN_FOREGROUND,
        cache: Literal["memory", "disk"] = "memory",
        cache_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        progress: bool = True,
        description: str = "features",
        preparation: Mapping[str, Any] | None = None,
    ) -> None:
        if cache == "disk" and cache_dir is None:
            raise ValueError('cache="disk" needs a cache_dir: the folder to keep features in.')
        self.size = size
        self.encoder = encoder
        self.options: dict[str, Any] = {
            "modality": modality,
            "only_normal": only_normal,
            "size": size,
            "slice_range": [float(x) for x in slice_range],
            "min_foreground": min_foreground,
            "preparation": dict(preparation or {}),
        }
        self.failures: dict[str, str] = {}
        self._batch_size, self._device, self._progress = batch_size, torch.device(device), progress
        self._description = description
        self._shape = (encoder.out_channels, encoder.grid, encoder.grid)
        if cache == "disk":
            folder = Path(str(cache_dir)) / self._key(cases)
            with main_first():
                if not (folder / "index.json").exists():
                    self._fill(cases, folder)
            self._open(folder)
        else:
            self._fill(cases, None)
        if not self.records:
            kind = "normal slice" if only_normal else "slice"
            raise TrainingDataError(
                f"no {kind} was found in {len(cases)} cases ({len(self.failures)} unreadable"
                f"{': ' + '; '.join(self.failures.values()) if self.failures else ''}). Expected "
                "studies whose foreground fills some slices, with masks empty on normal ones."
            )

    def _key(self, cases: Sequence[dict[str, Any]]) -> str:
        def stamp(path: str | None) -> list[Any]:
            if path is None or not Path(path).exists():
                return [path]
            status = Path(path).stat()
            return [str(Path(path).resolve()), status.st_size, status.st_mtime_ns]

        content = {
            "format": CACHE_FORMAT,
            "encoder": self.encoder.provenance["tensors_sha256"],
            "pool": self.encoder.provenance["pool"],
            "options": self.options,
            "cases": [
                [
                    c["case"],
                    stamp(c["image"]),
                    stamp(c.get("label")),
                    stamp(c.get("organ")),
                    c.get("anomalous"),
                    c.get("modality"),
                    patient_of(c),
                ]
                for c in cases
            ],
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]

    @torch.inference_mode()
    def _fill(self, cases: Sequence[dict[str, Any]], folder: Path | None) -> None:
        """Run the encoder over all slices, into memory or into a folder that appears whole."""
        partial = None
        if folder is not None:
            partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")
            partial.mkdir(parents=True)
        encode = encoding(self.encoder, self._device)
        rows = Rows(partial)
        self.records: list[SliceRecord] = []
        try:
            samples = iterate_slices(
                cases,
                self.options["modality"],
                size=self.size,
                only_normal=self.options["only_normal"],
                slice_range=tuple(self.options["slice_range"]),
                min_foreground=self.options["min_foreground"],
                preparation=self.options["preparation"],
                failures=self.failures,
            )
            shown = tqdm(samples, self._description, unit=" slices", disable=not self._progress)
            for group in batches(shown, self._batch_size or slices_at_once(encode, self._device)):
                images = stack_images(group)  # (B, 1, S, S)
                block = encode(images.to(self._device)).half().cpu().numpy()  # (B, C, g, g)
                if not np.isfinite(block).all():
                    raise TrainingDataError(
                        "encoder features leave the range of float16 (±65504); check the encoder "
                        f"weights ({self.encoder.provenance.get('weights')})."
                    )
                rows.append("features", block)
                rows.append("foreground", pack(images > 0))
                rows.append("lesion", pack(torch.stack([s.lesion for s in group])))
                self.records += [
                    SliceRecord(s.case, s.index, s.anomalous, s.patient, s.modality) for s in group
                ]
            if partial is None:
                for name, shape in self._row_shapes().items():
                    setattr(self, f"_{name}", rows.joined(name, shape))
            elif self.records and folder is not None:
                self._write_index(partial, folder)
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)

    def _write_index(self, partial: Path, folder: Path) -> None:
        index = {"records": [asdict(r) for r in self.records], "failures": self.failures}
        (partial / "index.json").write_text(json.dumps(index))
        if folder.exists():  # another process was faster, with the same content
            return
        partial.replace(folder)

    def _open(self, folder: Path) -> None:
        if not folder.exists():
            return
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.records = [SliceRecord(**r) for r in index["records"]]
        self.failures = index["failures"]
        for name, shape in self._row_shapes().items():
            stored = np.memmap(
                folder / name, dtype=ROW_TYPES[name], mode="r", shape=(len(self.records), *shape)
            )
            setattr(self, f"_{name}", stored)

    def _row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of what is kept of one slice, by name."""
        bits = ((self.size**2 + 7) // 8,)
        return {"features": self._shape, "foreground": bits, "lesion": bits}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {
            "image": torch.from_numpy(self._features[position].astype(np.float32)),  # (C, g, g)
            "label": torch.tensor(int(self.records[position].anomalous)),
        }

    def kept(self, positions: Sequence[int]) -> Tensor:
        """Features of several slices as they are kept, (n, C, g, g) float16."""
        return torch.from_numpy(self._features[list(positions)])

    def batch(self, positions: Sequence[int]) -> Tensor:
        """Features of several slices at once, (n, C, g, g) float32."""
        return self.kept(positions).float()

    def foreground(self, positions: Sequence[int]) -> Tensor:
        """Foreground of slices on the network grid, (n, 1, size, size) bool."""
        return unpack(self._foreground[list(positions)], self.size)

    def lesion(self, positions: Sequence[int]) -> Tensor:
        """Lesion masks of slices on the network grid, (n, 1, size, size) bool."""
        return unpack(self._lesion[list(positions)], self.size)

    @property
    def has_anomalies(self) -> bool:
        """Whether any slice is anomalous."""
        return any(r.anomalous for r in self.records)

    def weights(self) -> Tensor | None:
        """Weight of each slice (n,) under which all modalities are drawn alike; None for one."""
        counts = Counter(r.modality for r in self.records)
        if len(counts) < 2:
            return None
        return torch.tensor([1 / counts[r.modality] for r in self.records], dtype=torch.float64)

    def statistics(self, chunk: int = 64) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature channel over normal slices, (C,) each.

        Every modality has the same weight.
        """
        rows: dict[str, list[int]] = defaultdict(list)
        for i, record in enumerate(self.records):
            if not record.anomalous:
                rows[record.modality].append(i)
        return pooled_statistics([self._statistics(normal, chunk) for normal in rows.values()])

    def _statistics(self, normal: Sequence[int], chunk: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) over slices, float64."""
        total = torch.zeros(self._shape[0], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for start in range(0, len(normal), chunk):
            block = self.batch(normal[start : start + chunk]).double()
            total += block.sum((0, 2, 3))
            squares += block.square().sum((0, 2, 3))
        count = max(1, len(normal) * self._shape[1] * self._shape[2])
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=0)


def pooled_statistics(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,), float32, of parts that have the same weight each.

    Parameters
    ----------
    parts : sequence of (Tensor, Tensor)
        Mean and variance (C,) of each.
    """
    means, variances = (torch.stack(values) for values in zip(*parts, strict=True))  # (parts, C)
    mean = means.mean(0)
    std = (variances + (means - mean).square()).mean(0).sqrt()
    # a channel that never changes tells nothing; a unit deviation leaves it at zero
    return mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float()


def pack(masks: Tensor) -> np.ndarray:
    """Boolean masks (n, 1, S, S) as bits, (n, ⌈S²/8⌉) uint8."""
    return np.packbits(masks.flatten(1).numpy(), axis=1)


def unpack(bits: np.ndarray, size: int) -> Tensor:
    """Inverse of :func:`pack`: (n, 1, size, size) bool."""
    flat = np.unpackbits(np.asarray(bits), axis=1, count=size * size)
    return torch.from_numpy(flat.reshape(-1, 1, size, size).astype(bool))


class Rows:
    """What is kept of every slice, block after block: in memory, or at the end of files.

    Parameters
    ----------
    folder : Path or None
        Where the files grow, one for each name; None keeps the blocks in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._blocks: dict[str, list[np.ndarray]] = defaultdict(list)

    def append(self, name: str, block: np.ndarray) -> None:
        """Add rows (n, …)."""
        if self.folder is None:
            self._blocks[name].append(block)
            return
        with (self.folder / name).open("ab") as file:
            file.write(block.tobytes())

    def joined(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """All rows of a name that are in memory, (N, …); they are let go here."""
        blocks = self._blocks.pop(name, [])
        return np.concatenate(blocks) if blocks else np.zeros((0, *shape), dtype=ROW_TYPES[name])
