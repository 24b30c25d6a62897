"""Scores of other ideas on the same cached features, to stand beside our own.

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

#: Added to the diagonal of every covariance, as PaDiM does.
SHRINKAGE = 0.01
#: Queries at a time: bounds the distance matrix.
CHUNK = 1024
#: Training slices read at a time.
SLICES = 64

#: Features (B, C, g, g) → distances (B, 1, g, g).
GridMap = Callable[[Tensor], Tensor]


def nearest_neighbour(
    training: FeatureDataset, device: str = "cpu", *, cosine: bool = False
) -> GridMap:
    """Distance of each token to the nearest token of any training slice.

    With `cosine` it is 1 minus the largest cosine.
    """
    prepare = preparation(training, device)
    bank = torch.cat([prepare(part).flatten(0, 1) for part in read(training)])  # (M, C)
    bank = F.normalize(bank, dim=1) if cosine else bank

    def distance(queries: Tensor) -> Tensor:
        if cosine:
            largest = (F.normalize(queries, dim=1) @ bank.T).amax(1)
            return (1 - largest).clamp_min(0)  # rounding can make it negative
        return torch.cdist(queries, bank).amin(1)

    def maps(features: Tensor) -> Tensor:
        queries = prepare(features).flatten(0, 1)  # (B·N, C)
        nearest = torch.cat([distance(chunk) for chunk in queries.split(CHUNK)])
        return nearest.reshape(len(features), 1, *features.shape[2:])

    return maps


def position_gaussian(training: FeatureDataset, *, cosine: bool = False) -> GridMap:
    """Mahalanobis distance of each token to the training tokens at its own position.

    With `cosine` every token has the length √C, with which the shrinkage weighs as on plain ones.
    """
    prepare = preparation(training)

    def by_position(features: Tensor) -> Tensor:
        tokens = prepare(features).transpose(0, 1)  # (N, n, C)
        return F.normalize(tokens, dim=2) * tokens.shape[2] ** 0.5 if cosine else tokens

    known = torch.cat([by_position(part) for part in read(training)], dim=1)
    centre = known.mean(1, keepdim=True)  # (N, 1, C)
    offset = known - centre
    covariance = offset.transpose(1, 2) @ offset / max(1, known.shape[1] - 1)  # (N, C, C)
    covariance += SHRINKAGE * torch.eye(known.shape[2])
    factor = torch.linalg.cholesky(covariance)  # (N, C, C)

    def maps(features: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(
            factor, (by_position(features) - centre).transpose(1, 2), upper=False
        )  # (N, C, n)
        return white.norm(dim=1).T.reshape(len(features), 1, *features.shape[2:])

    return maps


def preparation(training: FeatureDataset, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """Features (n, C, g, g) to tokens (n, N, C), standardised by the training slices."""
    mean, std = (statistic.to(device) for statistic in training.statistics())
    return lambda features: (features.to(device).flatten(2).transpose(1, 2) - mean) / std


def read(dataset: FeatureDataset) -> list[Tensor]:
    """Features of all slices, in parts of (n, C, g, g)."""
    rows = torch.arange(len(dataset)).split(SLICES)
    return [dataset.batch(part.tolist()) for part in rows]
