"""Scores of other ideas on the same cached features, to stand beside the reconstruction.

A patch nearest-neighbour bank (the idea of PatchCore: Roth et al., CVPR 2022) and a Gaussian at
each position (the idea of PaDiM: Defard et al., ICPR 2021), both on standardised features and
without their authors' subsampling: every training token is used. Each comes with plain tokens and
with tokens of one length, which is the cosine distance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.score import AnomalyScore

#: Added to the diagonal of every covariance, as PaDiM does.
SHRINKAGE = 0.01
#: Queries at a time: bounds the distance matrix.
CHUNK = 1024

Maps = Callable[[list[int]], Tensor]


def nearest_neighbour(
    training: FeatureDataset, testing: FeatureDataset, device: str = "cpu", *, cosine: bool = False
) -> Maps:
    """Distance of each token to the nearest token of any training slice, on the token grid.

    With `cosine` it is 1 minus the largest cosine.
    """
    mean, std = (statistic.to(device) for statistic in training.statistics())
    bank = tokens_of(training, list(range(len(training))), mean, std).flatten(0, 1)  # (M, C)
    bank = F.normalize(bank, dim=1) if cosine else bank

    def distance(queries: Tensor) -> Tensor:
        if cosine:
            largest = (F.normalize(queries, dim=1) @ bank.T).amax(1)
            return (1 - largest).clamp_min(0)  # rounding can make it negative
        return torch.cdist(queries, bank).amin(1)

    def maps(rows: list[int]) -> Tensor:
        queries = tokens_of(testing, rows, mean, std).flatten(0, 1)  # (n·N, C)
        nearest = torch.cat([distance(chunk) for chunk in queries.split(CHUNK)])
        return on_grid(nearest, testing, len(rows))

    return maps


def position_gaussian(
    training: FeatureDataset, testing: FeatureDataset, *, cosine: bool = False
) -> Maps:
    """Mahalanobis distance of each token to the training tokens at its own position.

    With `cosine` every token has the length √C, with which the shrinkage weighs as on plain ones.
    """
    mean, std = training.statistics()

    def by_position(dataset: FeatureDataset, rows: list[int]) -> Tensor:
        tokens = tokens_of(dataset, rows, mean, std).transpose(0, 1)  # (N, n, C)
        return F.normalize(tokens, dim=2) * tokens.shape[2] ** 0.5 if cosine else tokens

    known = by_position(training, list(range(len(training))))
    centre = known.mean(1, keepdim=True)  # (N, 1, C)
    offset = known - centre
    covariance = offset.transpose(1, 2) @ offset / max(1, known.shape[1] - 1)  # (N, C, C)
    covariance += SHRINKAGE * torch.eye(known.shape[2])
    factor = torch.linalg.cholesky(covariance)  # (N, C, C)

    def maps(rows: list[int]) -> Tensor:
        queries = by_position(testing, rows)
        white = torch.linalg.solve_triangular(
            factor, (queries - centre).transpose(1, 2), upper=False
        )  # (N, C, n)
        return on_grid(white.norm(dim=1).T.flatten(), testing, len(rows))

    return maps


def tokens_of(dataset: FeatureDataset, rows: list[int], mean: Tensor, std: Tensor) -> Tensor:
    """Standardised tokens of slices, (n, N, C)."""
    return (dataset.batch(rows).to(mean.device).flatten(2).transpose(1, 2) - mean) / std


def on_grid(distances: Tensor, dataset: FeatureDataset, count: int) -> Tensor:
    """Distances (n·N,) of slices as maps, (n, 1, grid, grid)."""
    return distances.reshape(count, 1, dataset.encoder.grid, dataset.encoder.grid)


def upsampled(maps: Maps, size: int, smooth_sigma: float = 0.0) -> Maps:
    """Maps on the network grid, (n, 1, size, size), by the project's own upsampling."""
    score = AnomalyScore(smooth_sigma=smooth_sigma)
    return lambda rows: score.upsample(maps(rows), (size, size))
