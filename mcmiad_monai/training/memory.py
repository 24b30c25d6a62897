"""Building the memory: a coreset of the foreground tokens of normal training slices."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcmiad_monai.calibration import PIXEL_FALSE_POSITIVE_RATE
from mcmiad_monai.data.features import FeatureDataset, TrainingDataError
from mcmiad_monai.metrics.histogram import ScoreHistogram
from mcmiad_monai.networks.memory import Distance, NormalMemory, prepare
from mcmiad_monai.training.method import Method

logger = logging.getLogger(__name__)

#: Tokens that are kept of each modality.
CORESET = 5_000
#: Tokens of each modality that the kept ones are chosen from: an equal share of every study.
POOL = 12_000
#: Dimensions of the random projection in which tokens are compared while they are chosen.
PROJECTION = 48
#: Slices that are read at once.
CHUNK = 64


#: Held-out distances are kept as so many quantiles, from the least to the largest.
QUANTILES = 101


class Drawn(NamedTuple):
    """Tokens that were drawn from a dataset.

    Attributes
    ----------
    tokens : Tensor (n, C)
        As of :func:`~mcmiad_monai.networks.memory.prepare`.
    origin : Tensor (n, 3), int32
        Number of the study, slice, and cell.
    """

    tokens: Tensor
    origin: Tensor


@dataclass(frozen=True)
class BuiltMemory:
    """A memory, and what its numbers of studies stand for.

    Attributes
    ----------
    memory : NormalMemory
    studies : list of str
        Names of the studies by their number. They stay out of the package.
    """

    memory: NormalMemory
    studies: list[str]


def build_memory(
    data: FeatureDataset,
    distance: Distance = "cosine",
    *,
    size: int = CORESET,
    pool: int = POOL,
    seed: int = 0,
    without: Collection[str] = (),
) -> BuiltMemory:
    """Choose the tokens of a memory among those of normal slices.

    The greedy k-centre choice takes, one after the other, the token that is farthest from all that
    were taken. What is in memory at once is bounded by the pool, however many slices there are.

    Parameters
    ----------
    data : FeatureDataset
        Training slices; its anomalous ones are left out. Each of its modalities gets `size` tokens.
    distance : {"cosine", "l2"}
    size, pool : int
        Tokens to keep, and tokens to choose from, of each modality.
    without : collection of str
        Studies to leave out, such as odd ones.

    Raises
    ------
    TrainingDataError
        If there is no normal slice.
    """
    mean, std = data.statistics()
    groups = getattr(data.encoder, "member_channels", (len(mean),))
    generator = np.random.default_rng(seed)
    slices: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, record in enumerate(data.records):
        if not record.anomalous and record.case not in without:
            slices[record.modality][record.case].append(row)
    names = sorted({case for cases in slices.values() for case in cases})
    # numbers in an order that says nothing of the names
    numbers = {names[k]: i for i, k in enumerate(generator.permutation(len(names)))}
    if not names:
        raise TrainingDataError(
            f"the memory needs normal training slices; found none in {len(data)} slices, with "
            f"{len(without)} studies left out. Check the training studies with `mcmiad cases`."
        )
    kept: list[Drawn] = []
    for modality in sorted(slices):
        drawn = _pool(data, slices[modality], numbers, pool, generator)
        tokens = prepare(drawn.tokens[:, :, None, None], mean, std, distance, groups)
        chosen = k_centre(tokens, size, seed)
        kept.append(Drawn(tokens[chosen], drawn.origin[chosen]))
        logger.info(
            "memory of %s: %d of %d tokens of %d studies (%s)",
            *(modality or "all", len(chosen), len(tokens), len(slices[modality]), distance),
        )
    memory = NormalMemory.of_tokens(
        torch.cat([part.tokens for part in kept]),
        mean=mean,
        std=std,
        distance=distance,
        groups=groups,
        origin=torch.cat([part.origin for part in kept]),
    )
    return BuiltMemory(memory, sorted(numbers, key=numbers.__getitem__))


@dataclass(frozen=True)
class BuiltMemories:
    """Memories of one training.

    Attributes
    ----------
    memories : dict of str to NormalMemory
        By distance.
    studies : list of str
        As of `BuiltMemory`; the same for all.
    description : dict
        Plain values for the provenance: ``tokens``, ``studies`` (a number), ``left_out``, and
        ``held_out_distances``, quantiles by distance.
    """

    memories: dict[str, NormalMemory]
    studies: list[str]
    description: dict[str, Any]


def build_memories(
    method: Method,
    data: FeatureDataset,
    held_out: FeatureDataset,
    held_out_rows: Sequence[int],
    *,
    seed: int = 0,
    without: Collection[str] = (),
    device: str | torch.device = "cpu",
) -> BuiltMemories:
    """Build the memories that a method names, and measure them on held-out normal slices.

    Parameters
    ----------
    data, held_out : FeatureDataset
        Training slices, and others.
    held_out_rows : sequence of int
        Normal ones of those; without any, nothing is measured.
    without : collection of str
        Training studies to leave out.
    """
    built = {
        d: build_memory(data, d, size=method.coreset, seed=seed, without=without)
        for d in method.memories
    }
    one = next(iter(built.values()))
    return BuiltMemories(
        {d: b.memory for d, b in built.items()},
        one.studies,
        {
            "tokens": len(one.memory.tokens),
            "studies": len(one.studies),
            "left_out": len(without),
            "held_out_distances": {
                d: measure_memory(b.memory, held_out, held_out_rows, device=device)
                for d, b in built.items()
                if held_out_rows
            },
        },
    )


@torch.inference_mode()
def measure_memory(
    memory: NormalMemory,
    data: FeatureDataset,
    rows: Sequence[int],
    *,
    rate: float = PIXEL_FALSE_POSITIVE_RATE,
    device: str | torch.device = "cpu",
) -> list[float]:
    """Set the units of a memory's groups, and find what distances held-out normals have.

    Parameters
    ----------
    memory : NormalMemory
        Of an ensemble it gets units: what a share `rate` of normal foreground cells exceeds in each
        group. One group keeps the unit 1.
    data : FeatureDataset
        Held-out slices.
    rows : sequence of int
        Its normal ones.

    Returns
    -------
    list of float
        Quantiles 0, 1, …, 100 % of the distances of foreground cells.
    """
    memory.to(device)
    if len(memory.groups) > 1:
        found = [ScoreHistogram() for _ in memory.groups]
        for features, inside in _held_out(data, rows, device):
            for histogram, each in zip(found, memory.group_distances(features), strict=True):
                histogram.update(each.flatten(1)[inside])
        memory.units.copy_(torch.tensor([h.quantile(1 - rate) for h in found]))
    histogram = ScoreHistogram()
    for features, inside in _held_out(data, rows, device):
        histogram.update(memory(features).flatten(1)[inside])
    return [histogram.quantile(q) for q in np.linspace(0, 1, QUANTILES)]


def _held_out(
    data: FeatureDataset, rows: Sequence[int], device: str | torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (n, C, g, g) and foreground cells (n, g²) of slices, part by part."""
    for start in range(0, len(rows), CHUNK):
        part = list(rows[start : start + CHUNK])
        features = data.batch(part).to(device)
        inside = cells_in_foreground(data.foreground(part), features.shape[-1])
        yield features, inside.to(device)


def k_centre(tokens: Tensor, size: int, seed: int = 0) -> Tensor:
    """Rows (size,), int64, of tokens (n, C) by the greedy k-centre choice; all if there are fewer.

    Distances are those of a random projection to `PROJECTION` dimensions.
    """
    count = len(tokens)
    if count <= size:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(tokens.shape[1], PROJECTION, generator=generator)
    points = tokens.float() @ projection  # (n, d)
    squares = points.square().sum(1)
    chosen = torch.empty(size, dtype=torch.long)
    chosen[0] = int(torch.randint(count, (), generator=generator))
    nearest = torch.full((count,), torch.inf)
    for step in range(1, size):
        last = points[chosen[step - 1]]
        away = squares - 2 * (points @ last) + last.square().sum()  # (n,)
        nearest = torch.minimum(nearest, away)
        chosen[step] = int(nearest.argmax())
    return chosen


def cells_in_foreground(foreground: Tensor, grid: int) -> Tensor:
    """Cells (n, grid²), bool, that have a pixel of the foreground (n, 1, S, S)."""
    return F.adaptive_max_pool2d(foreground.float(), grid).flatten(1) > 0


def _pool(
    data: FeatureDataset,
    studies: dict[str, list[int]],
    numbers: dict[str, int],
    pool: int,
    generator: np.random.Generator,
) -> Drawn:
    """Draw at most `pool` foreground tokens (n, C), about as many of every study."""
    names = sorted(studies)
    if len(names) > pool:
        names = [names[i] for i in generator.choice(len(names), pool, replace=False)]
    share = -(-pool // max(1, len(names)))
    tokens, origins = [], []
    for name in names:
        rows = np.asarray(studies[name])
        if len(rows) > share:  # one token of each slice at most
            rows = np.sort(generator.choice(rows, share, replace=False))
        row, cell = _foreground_tokens(data, rows)
        picked = np.sort(generator.permutation(len(row))[:share])
        row, cell = row[picked], cell[picked]
        for start in range(0, len(row), CHUNK):
            part = slice(start, start + CHUNK)
            unique, place = np.unique(row[part], return_inverse=True)
            features = data.batch(unique.tolist()).flatten(2)  # (n, C, g²)
            tokens.append(features[place, :, cell[part]])
        indices = [data.records[i].index for i in row]
        number = np.full(len(row), numbers[name])
        origins.append(np.stack([number, indices, cell], 1))
    return Drawn(torch.cat(tokens), torch.from_numpy(np.concatenate(origins)).int())


def _foreground_tokens(
    data: FeatureDataset, rows: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and cell of every foreground token of some slices, (n,) each."""
    found_rows, found_cells = [], []
    grid = data.batch([0]).shape[-1]
    for start in range(0, len(rows), CHUNK):
        part = np.asarray(rows[start : start + CHUNK])
        inside = cells_in_foreground(data.foreground(part.tolist()), grid)
        which, cell = (index.numpy() for index in inside.nonzero(as_tuple=True))
        found_rows.append(part[which])
        found_cells.append(cell)
    return np.concatenate(found_rows), np.concatenate(found_cells)
