"""The feature dataset: the frozen encoder sees every slice once, and never again.

The encoder is frozen, so an epoch of training reads features instead of images. They are kept as
float16 (106 kB a slice for EfficientNet-B4), in memory or on disk. Images are augmented as copies,
whose features are kept too.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mcmiad_monai.data.augmentation import RECIPE, augmented_copies
from mcmiad_monai.data.cache_key import cache_key
from mcmiad_monai.data.feature_store import (
    INDEX,
    FeatureBlock,
    FeatureWriter,
    SliceRecord,
    open_block,
    unpack,
)
from mcmiad_monai.data.studies import SliceSample, batches, iterate_slices, stack_images
from mcmiad_monai.networks.encoder import FrozenEncoder
from mcmiad_monai.runtime.cpu import encoding, slices_at_once
from mcmiad_monai.transforms import MIN_FOREGROUND, preprocessing

logger = logging.getLogger(__name__)


class TrainingDataError(RuntimeError):
    """The cases given cannot be trained on."""


class FeatureDataset(Dataset[dict[str, Any]]):
    """Encoder features of the slices of cases, computed at construction and kept.

    A dataset has one or several parts, which have equal weight in the statistics and equal shares
    in training: its modalities, or the datasets that were joined.

    Parameters
    ----------
    cases : sequence of dict
        Case dictionaries (``case``, ``image``, ``label``, ``anomalous``).
    encoder : FrozenEncoder
        Gives (B, C, g, g) for (B, 1 or 3, size, size).
    modality : str
        Name of the modality, which has the slice axis.
    transform : callable, optional
        From a case to a volume ``image`` and a mask ``label``; the modality's own
        :func:`~mcmiad_monai.transforms.preprocessing` by default.
    only_normal : bool
        Keep only slices without lesion, as training needs it.
    batch_size : int, optional
        Slices in one call of the encoder; by default what suits the device.
    slice_range : (float, float)
        Share of the slices of each study to use.
    context : {1, 3}
        3 shows the encoder each slice between its neighbours.
    cache : {"memory", "disk"}
        Where features are kept. On disk they are found again by a key over encoder weights,
        transforms, options, and path, size and time of every file.
    cache_dir : path, optional
        Needed for ``"disk"``. Of several processes the first fills it, and the others read.
    copies : int
        Augmented copies of each slice, which only `with_copies` has.
    seed : int
        Of the augmentation.

    Attributes
    ----------
    records : list of SliceRecord
        Origin of each slice.
    parts : list of str
        Part that each slice belongs to.
    failures : dict
        Case → message, of the cases that could not be read.
    case_count : int
        Cases given, readable or not.

    Returns
    -------
    dict
        ``image`` (C, g, g) float32 features, ``label`` 0/1 anomalous.

    Raises
    ------
    TrainingDataError
        If no slice is left.
    """

    _copies: FeatureDataset | None = None

    def __init__(
        self,
        cases: Sequence[dict[str, Any]],
        encoder: FrozenEncoder,
        *,
        modality: str,
        transform: Callable[..., Any] | None = None,
        only_normal: bool = False,
        size: int = 224,
        batch_size: int | None = None,
        slice_range: Sequence[float] = (0.0, 1.0),
        min_foreground: float = MIN_FOREGROUND,
        context: int = 1,
        cache: Literal["memory", "disk"] = "memory",
        cache_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        progress: bool = True,
        description: str = "features",
        copies: int = 0,
        seed: int = 0,
    ) -> None:
        if cache == "disk" and cache_dir is None:
            raise ValueError('cache="disk" needs a cache_dir: the folder to keep features in.')
        prepare = transform or preprocessing(modality, mask_key="label")
        options: dict[str, Any] = {
            "modality": modality,
            "only_normal": only_normal,
            "size": size,
            "slice_range": (float(slice_range[0]), float(slice_range[1])),
            "min_foreground": min_foreground,
            "context": context,
        }
        shape = (encoder.out_channels, encoder.grid, encoder.grid)

        def encode(chosen: Sequence[dict[str, Any]], folder: Path | None, n: int) -> FeatureBlock:
            writer = FeatureWriter(shape, size, folder, chosen)
            samples = iterate_slices(chosen, transform=prepare, failures=writer.failures, **options)
            samples = augmented_copies(samples, n, seed) if n else samples
            name = f"{description}, copies" if n else description
            shown = tqdm(samples, name, unit=" slices", disable=not progress)
            return encode_slices(shown, encoder, writer, batch_size, device)

        keys = {}
        for n in {0, copies} if cache == "disk" else ():  # now: transforms change as they are used
            augmented = {"copies": n, "seed": seed, **RECIPE} if n else {}
            keys[n] = cache_key(cases, prepare, {**options, **augmented}, encoder.provenance)

        def found(chosen: Sequence[dict[str, Any]], n: int = 0) -> FeatureBlock:
            """Features of the slices, or of ``n`` copies of each: kept ones, or computed."""
            if cache == "memory":
                return encode(chosen, None, n)
            folder = Path(str(cache_dir)) / keys[n]
            with idist.one_rank_first():
                there = (folder / INDEX).exists()
                if there:
                    return open_block(folder, shape, size, chosen)
                return encode(chosen, folder, n)

        block = found(cases)
        if not block.records:
            kind = "normal slice" if only_normal else "slice"
            failed = "".join(f"; {message}" for message in block.failures.values())
            raise TrainingDataError(
                f"no {kind} was found in {len(cases)} cases ({len(block.failures)} unreadable"
                f"{failed}). Expected studies whose foreground fills some slices, with masks that "
                "are empty on normal ones."
            )
        self._set([block], [r.modality for r in block.records], encoder, len(cases))
        if copies:
            readable = [case for case in cases if case["case"] not in block.failures]
            self._copies = self.from_blocks([found(readable, copies)], encoder=encoder)

    @classmethod
    def from_blocks(
        cls,
        blocks: Sequence[FeatureBlock],
        *,
        encoder: FrozenEncoder,
        parts: Sequence[str] | None = None,
        case_count: int = 0,
    ) -> FeatureDataset:
        """A dataset of features that are there already; see the attributes."""
        dataset = cls.__new__(cls)
        modalities = [record.modality for block in blocks for record in block.records]
        dataset._set(blocks, modalities if parts is None else parts, encoder, case_count)
        return dataset

    @classmethod
    def join(cls, datasets: Mapping[str, FeatureDataset]) -> FeatureDataset:
        """Datasets of one encoder as one, one after the other, each a part under its name."""
        each = list(datasets.values())
        joined = cls.from_blocks(
            [block for dataset in each for block in dataset._blocks],
            encoder=each[0].encoder,
            parts=[name for name, dataset in datasets.items() for _ in dataset.records],
            case_count=sum(dataset.case_count for dataset in each),
        )
        copies = {name: data._copies for name, data in datasets.items() if data._copies}
        joined._copies = cls.join(copies) if copies else None
        return joined

    def _set(
        self,
        blocks: Sequence[FeatureBlock],
        parts: Sequence[str],
        encoder: FrozenEncoder,
        case_count: int,
    ) -> None:
        self._blocks, self.parts, self.case_count = list(blocks), list(parts), case_count
        self._ends = np.cumsum([len(block.records) for block in blocks])
        self.encoder, self.size = encoder, blocks[0].size
        self.records: list[SliceRecord] = [r for block in blocks for r in block.records]
        self.failures = {k: v for block in blocks for k, v in block.failures.items()}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {
            "image": self.batch([position])[0],  # (C, g, g)
            "label": torch.tensor(int(self.records[position].anomalous)),
        }

    def _rows(self, name: str, positions: Sequence[int]) -> np.ndarray:
        rows = []
        for position in positions:
            number = int(np.searchsorted(self._ends, position, side="right"))
            block = self._blocks[number]
            rows.append(getattr(block, name)[position - self._ends[number]])  # from the end
        return np.stack(rows)

    def batch(self, positions: Sequence[int]) -> Tensor:
        """Features of several slices at once, (n, C, g, g) float32."""
        return torch.from_numpy(self._rows("features", positions).astype(np.float32))

    def foreground(self, positions: Sequence[int]) -> Tensor:
        """Foreground of slices on the network grid, (n, 1, size, size) bool."""
        return unpack(self._rows("foreground", positions), self.size)

    def intensity(self, positions: Sequence[int]) -> Tensor | None:
        """Brightness of slices, (n, 1, size / 4, size / 4) float32; None if it was not kept."""
        if any(block.intensity is None for block in self._blocks):
            return None
        return torch.from_numpy(self._rows("intensity", positions).astype(np.float32))

    def lesion(self, positions: Sequence[int]) -> Tensor:
        """Lesion masks of slices on the network grid, (n, 1, size, size) bool."""
        return unpack(self._rows("lesion", positions), self.size)

    @property
    def with_copies(self) -> FeatureDataset:
        """The slices and their augmented copies, of which each has the part of its slice."""
        if self._copies is None:
            return self
        return self.from_blocks(
            [*self._blocks, *self._copies._blocks],
            encoder=self.encoder,
            parts=[*self.parts, *self._copies.parts],
            case_count=self.case_count,
        )

    @property
    def has_anomalies(self) -> bool:
        """Whether any slice is anomalous."""
        return any(r.anomalous for r in self.records)

    def weights(self) -> Tensor | None:
        """Weight of each slice (n,) by which all parts are drawn alike; None for one part."""
        counts = Counter(self.parts)
        if len(counts) < 2:
            return None
        return torch.tensor([1 / counts[part] for part in self.parts], dtype=torch.float64)

    def statistics(self, chunk: int = 64) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature channel over normal slices, (C,) each.

        Every part has the same weight.
        """
        rows: dict[str, list[int]] = defaultdict(list)
        for i, (record, part) in enumerate(zip(self.records, self.parts, strict=True)):
            if not record.anomalous:
                rows[part].append(i)
        return pooled_statistics([self._statistics(normal, chunk) for normal in rows.values()])

    def _statistics(self, normal: Sequence[int], chunk: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) over slices, float64."""
        chunks = [normal[start : start + chunk] for start in range(0, len(normal), chunk)]
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        for positions in chunks:
            block = self.batch(positions).double()  # (n, C, g, g)
            total = total + block.sum((0, 2, 3))
            squares = squares + block.square().sum((0, 2, 3))
            count += block[:, 0].numel()
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=0)


@torch.inference_mode()
def encode_slices(
    samples: Iterable[SliceSample],
    encoder: FrozenEncoder,
    writer: FeatureWriter,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
) -> FeatureBlock:
    """Features of slices, which go through the encoder batch by batch, into a writer.

    Raises
    ------
    TrainingDataError
        If a feature does not fit into float16.
    """
    device = torch.device(device)
    encode = encoding(encoder, device)
    try:
        for group in batches(samples, batch_size or slices_at_once(encode, device)):
            images = stack_images(group)  # (B, 1 or 3, S, S)
            features = encode(images.to(device)).half().cpu().numpy()  # (B, C, g, g)
            if not np.isfinite(features).all():
                raise TrainingDataError(
                    "encoder features leave the range of float16 (±65504); check the encoder "
                    f"weights ({encoder.provenance.get('weights')})."
                )
            records = [
                SliceRecord(s.case, s.index, s.anomalous, s.patient, s.modality) for s in group
            ]
            writer.append(records, features, images, torch.stack([s.lesion for s in group]))
        return writer.finish()
    finally:
        writer.clean()


def pooled_statistics(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,), float32, of parts that have the same weight each.

    Parameters
    ----------
    parts : sequence of (Tensor, Tensor)
        Mean and variance (C,) of each. A variance of 0 stays 0 here: a channel that is constant in
        one part may vary in another.
    """
    means, variances = (torch.stack(values) for values in zip(*parts, strict=True))  # (parts, C)
    mean = means.mean(0)
    std = (variances + (means - mean).square()).mean(0).sqrt()
    # a channel that is constant everywhere is left at zero by a unit deviation
    return mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float()
