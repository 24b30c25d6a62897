"""anomalib's own PatchCore on our cached features.

anomalib is no dependency of the project; install it for this benchmark alone:
``pip install anomalib`` (run with 2.7.0). Its feature extractor is left out, so that bank, coreset,
neighbour search, image score and smoothing are anomalib's and the features are ours.
"""

from __future__ import annotations

import torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from peers import Maps, tokens_of
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset

#: anomalib's default.
CORESET = 0.1


def patchcore(training: FeatureDataset, testing: FeatureDataset, seed: int = 0) -> Maps:
    """Anomaly maps of anomalib's PatchCore over standardised tokens."""
    torch.manual_seed(seed)
    mean, std = training.statistics()
    # a backbone is asked for and never run
    model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False).eval()
    bank = tokens_of(training, list(range(len(training))), mean, std)
    model.embedding_store.append(bank.flatten(0, 1))
    model.subsample_embedding(CORESET)
    grid = training.encoder.grid

    def maps(rows: list[int]) -> Tensor:
        queries = tokens_of(testing, rows, mean, std).flatten(0, 1)
        distances, _ = model.nearest_neighbors(queries, n_neighbors=1)
        small = distances.reshape(len(rows), 1, grid, grid)
        found: Tensor = model.anomaly_map_generator(small, (testing.size, testing.size))
        return found

    return maps
