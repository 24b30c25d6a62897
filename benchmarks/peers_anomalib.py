"""anomalib's own PatchCore on our cached features.

anomalib is no dependency of the project; install it for this benchmark alone:
``pip install anomalib`` (run with 2.7.0). Its feature extractor is left out, so that bank, coreset,
neighbour search, image score and smoothing are anomalib's and the features are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from peers import Maps, tokens_of
from torch import Tensor

from mcmiad_monai.data.features import FeatureDataset

#: anomalib's default.
CORESET = 0.1


def patchcore(
    training: FeatureDataset, testing: FeatureDataset, seed: int = 0, *, cosine: bool = False
) -> Maps:
    """Anomaly maps of anomalib's PatchCore over standardised tokens.

    With `cosine` tokens have unit length, on which its Euclidean distance ranks as the cosine does.
    """
    torch.manual_seed(seed)
    mean, std = training.statistics()
    # a backbone is asked for and never run
    model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False).eval()

    def tokens(dataset: FeatureDataset, rows: list[int]) -> Tensor:
        found = tokens_of(dataset, rows, mean, std).flatten(0, 1)  # (n·N, C)
        return F.normalize(found, dim=1) if cosine else found

    model.embedding_store.append(tokens(training, list(range(len(training)))))
    model.subsample_embedding(CORESET)
    grid = training.encoder.grid

    def maps(rows: list[int]) -> Tensor:
        distances, _ = model.nearest_neighbors(tokens(testing, rows), n_neighbors=1)
        small = distances.reshape(len(rows), 1, grid, grid)
        found: Tensor = model.anomaly_map_generator(small, (testing.size, testing.size))
        return found

    return maps
