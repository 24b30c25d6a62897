"""anomalib's own PatchCore and PaDiM on our cached features.

anomalib is no dependency of the project; install it for this benchmark alone:
``pip install anomalib`` (run with 2.7.0). Its feature extractors are left out, so that bank,
coreset, neighbour search, Gaussians and smoothing are anomalib's and the features are ours.
"""

from __future__ import annotations

import ctypes
import sys

import torch
import torch.nn.functional as F
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from peers import GridMap, preparation, read
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset

#: anomalib's defaults: share of the tokens kept, channels drawn.
CORESET, CHANNELS = 0.1, 100
#: glibc's name for the size from which on freed memory goes back to the system, and that size.
M_MMAP_THRESHOLD, RETURNED = -3, 1 << 20


def patchcore(training: FeatureDataset, seed: int = 0, *, cosine: bool = False) -> GridMap:
    """Distances of anomalib's PatchCore over standardised tokens.

    With `cosine` tokens have unit length, on which its Euclidean distance ranks as the cosine does.
    """
    torch.manual_seed(seed)
    if sys.platform == "linux":
        # each step of its coreset search frees 30 MB, which glibc keeps in pieces: 15 GB otherwise
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, RETURNED)
    # a backbone is asked for and never run
    model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False).eval()
    prepare = preparation(training)

    def tokens(features: Tensor) -> Tensor:
        found = prepare(features).flatten(0, 1)  # (n·N, C)
        return F.normalize(found, dim=1) if cosine else found

    model.embedding_store.extend(tokens(part) for part in read(training))
    model.subsample_embedding(CORESET)

    def maps(features: Tensor) -> Tensor:
        distances, _ = model.nearest_neighbors(tokens(features), n_neighbors=1)
        return distances.reshape(len(features), 1, *features.shape[2:])

    return maps


def padim(training: FeatureDataset, seed: int = 0, *, cosine: bool = False) -> GridMap:
    """Mahalanobis distances of anomalib's PaDiM over a drawn part of the standardised channels.

    With `cosine` tokens have the length √C, as those of `peers.position_gaussian`.
    """
    torch.manual_seed(seed)
    model = PadimModel(layers=["layer1", "layer2"], backbone="resnet18", pre_trained=False).eval()
    prepare = preparation(training)
    channels = training.encoder.out_channels
    chosen = torch.randperm(channels)[:CHANNELS]  # as PadimModel does with its own extractor

    def embedding(features: Tensor) -> Tensor:
        tokens = prepare(features)  # (n, N, C)
        tokens = F.normalize(tokens, dim=2) * channels**0.5 if cosine else tokens
        return tokens[..., chosen].transpose(1, 2).reshape(len(features), -1, *features.shape[2:])

    model.memory_bank.extend(embedding(part) for part in read(training))
    model.fit()
    gaussian = model.gaussian

    def maps(features: Tensor) -> Tensor:
        found: Tensor = model.anomaly_map_generator.compute_distance(
            embedding(features), [gaussian.mean, gaussian.inv_covariance]
        )
        return found

    return maps
