"""Building the memory: a coreset of the foreground tokens of normal training slices."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset, TrainingDataError
from mcmiad_monai.networks.memory import Distance, NormalMemory, prepare

logger = logging.getLogger(__name__)

#: Tokens that are kept of each modality.
CORESET = 5_000
#: Tokens of each modality that the kept ones are chosen from: an equal share of every study.
POOL = 12_000
#: Dimensions of the random projection in which tokens are compared while they are chosen.
PROJECTION = 48
#: A cell of the grid is foreground if this share of its pixels is.
CELL_FOREGROUND = 0.5
#: Slices that are read at once.
CHUNK = 64


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
    """Cells (n, grid²), bool, of which half is foreground (n, 1, S, S); at least the fullest."""
    share = F.adaptive_avg_pool2d(foreground.float(), grid).flatten(1)  # (n, grid²)
    fullest = share.amax(1, keepdim=True)
    return (share >= torch.minimum(fullest, torch.tensor(CELL_FOREGROUND))) & (share > 0)


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
