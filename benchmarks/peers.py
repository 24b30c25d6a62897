"""Scores of other ideas on the same cached features, to stand beside the reconstruction.

A patch nearest-neighbour bank (the idea of PatchCore: Roth et al., CVPR 2022) and a Gaussian at
each position (the idea of PaDiM: Defard et al., ICPR 2021), both on standardised features and
without their authors' subsampling: every training token is used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.score import AnomalyScore

#: Added to the diagonal of every covariance, as PaDiM does.
SHRINKAGE = 0.01
#: Queries at a time: bounds the distance matrix.
CHUNK = 1024

Maps = Callable[[list[int]], Tensor]


def nearest_neighbour(
    training: FeatureDataset, testing: FeatureDataset, device: str = "cpu"
) -> Maps:
    """Distance of each token to the nearest token of any training slice, anywhere."""
    mean, std = (statistic.to(device) for statistic in training.statistics())
    bank = tokens_of(training, list(range(len(training))), mean, std).flatten(0, 1)  # (M, C)

    def maps(rows: list[int]) -> Tensor:
        queries = tokens_of(testing, rows, mean, std)  # (n, N, C)
        nearest = [torch.cdist(q, bank).amin(1) for q in queries.flatten(0, 1).split(CHUNK)]
        return as_maps(torch.cat(nearest), testing, len(rows))

    return maps


def position_gaussian(training: FeatureDataset, testing: FeatureDataset) -> Maps:
    """Mahalanobis distance of each token to the training tokens at its own position."""
    mean, std = training.statistics()
    known = tokens_of(training, list(range(len(training))), mean, std).transpose(0, 1)  # (N, n, C)
    centre = known.mean(1, keepdim=True)  # (N, 1, C)
    offset = known - centre
    covariance = offset.transpose(1, 2) @ offset / max(1, known.shape[1] - 1)  # (N, C, C)
    covariance += SHRINKAGE * torch.eye(known.shape[2])
    factor = torch.linalg.cholesky(covariance)  # (N, C, C)

    def maps(rows: list[int]) -> Tensor:
        queries = tokens_of(testing, rows, mean, std).transpose(0, 1)  # (N, n, C)
        white = torch.linalg.solve_triangular(
            factor, (queries - centre).transpose(1, 2), upper=False
        )  # (N, C, n)
        return as_maps(white.norm(dim=1).T.flatten(), testing, len(rows))

    return maps


def tokens_of(dataset: FeatureDataset, rows: list[int], mean: Tensor, std: Tensor) -> Tensor:
    """Standardised tokens of slices, (n, N, C)."""
    return (dataset.batch(rows).to(mean.device).flatten(2).transpose(1, 2) - mean) / std


def as_maps(distances: Tensor, dataset: FeatureDataset, count: int) -> Tensor:
    """Distances (n·N,) on the network grid, (n, 1, S, S), upsampled as the project's own score."""
    grid = dataset.encoder.grid
    small = distances.reshape(count, 1, grid, grid)
    return AnomalyScore().upsample(small, (dataset.size, dataset.size))
