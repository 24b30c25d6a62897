from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from mcmiad_monai.networks.score import AnomalyScore, foreground_of, volume_score

# one place, three channels: difference (0, 3, 4), inner product 2·2 + 0·3 + 1·5, norms √5 and √38
TARGET = torch.tensor([2.0, 0.0, 1.0]).view(1, 3, 1, 1)
RESTORED = torch.tensor([2.0, 3.0, 5.0]).view(1, 3, 1, 1)
SQUARED = 25.0
COSINE_DISTANCE = 1 - 9 / math.sqrt(5 * 38)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SQUARED + COSINE_DISTANCE),
        ({"mse_reduction": "mean"}, SQUARED / 3 + COSINE_DISTANCE),
        ({"terms": "mse"}, SQUARED),
        ({"terms": "mse", "mse_reduction": "norm"}, math.sqrt(SQUARED)),
        ({"terms": "cos"}, COSINE_DISTANCE),
        ({"mse_weight": 0.7}, 0.7 * SQUARED + 0.3 * COSINE_DISTANCE),
    ],
)
def test_score_map_by_hand(options, expected):
    found = AnomalyScore(**options).score_map(TARGET, RESTORED)
    assert found.shape == (1, 1, 1, 1)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_stage_weights_by_hand():
    options = {"stage_weights": (2, 0.5), "stage_channels": (1, 2)}
    squared = 0.5 * 9 + 0.5 * 16
    inner, first, second = 2 * 4 + 0.5 * 5, 2 * 4 + 0.5 * 1, 2 * 4 + 0.5 * 9 + 0.5 * 25
    cosine = 1 - inner / math.sqrt(first * second)
    summed = AnomalyScore(**options).score_map(TARGET, RESTORED).item()
    assert summed == pytest.approx(squared + cosine, rel=1e-6)
    mean = AnomalyScore(mse_reduction="mean", terms="mse", **options).score_map(TARGET, RESTORED)
    assert mean.item() == pytest.approx(squared / 3, rel=1e-6)  # weights add up to 2 + 0.5 + 0.5


def test_perfect_reconstruction_scores_zero_and_nothing_scores_less():
    features = torch.randn(4, 30, 14, 14)
    score = AnomalyScore().score_map(features, features)
    assert 0 <= score.min() <= score.max() < 1e-6


def test_half_precision_features_are_scored_in_float32():
    features = 100 * torch.ones(1, 272, 2, 2, dtype=torch.float16)
    score = AnomalyScore(terms="mse").score_map(features, torch.zeros_like(features))
    assert score.dtype == torch.float32
    assert score.max() == pytest.approx(272 * 1e4)  # beyond the range of float16


def test_upsampling_is_bilinear_between_cell_centres():
    score_map = torch.tensor([[0.0, 4.0]]).view(1, 1, 1, 2)
    found = AnomalyScore().upsample(score_map, (1, 4))
    assert found.flatten().tolist() == [0, 1, 3, 4]


def test_aligned_corners_put_the_first_cell_on_the_first_pixel():
    small = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    found = AnomalyScore(align_corners=True).upsample(small, (10, 10))[0, 0, 0]
    np.testing.assert_allclose(found, np.linspace(0, 3, 10), atol=1e-6)


def test_smoothing_agrees_with_scipy():
    image = torch.zeros(1, 1, 40, 50)
    image[0, 0, 3, 20] = 1
    found = AnomalyScore(smooth_sigma=2.0).upsample(image, (40, 50))[0, 0].numpy()
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), 2.0, mode="mirror", truncate=3.0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_slice_score_by_hand():
    heat = torch.arange(100.0).view(1, 1, 10, 10)
    expected = 0.5 * 99 + 0.3 * 49.5 + 0.2 * 97  # the top 5 are 95 to 99
    assert AnomalyScore().slice_score(heat).tolist() == pytest.approx([expected])


def test_slice_score_with_a_fraction_of_pixels():
    heat = torch.arange(100.0).view(1, 1, 10, 10)
    expected = 0.5 * 99 + 0.3 * 49.5 + 0.2 * 94.5  # the top tenth is 90 to 99
    assert AnomalyScore(top_k=0.1).slice_score(heat).tolist() == pytest.approx([expected])


def test_slice_score_is_taken_per_sample_and_inside_the_foreground():
    heat = torch.stack([torch.arange(100.0), torch.arange(100.0) * 10]).view(2, 1, 10, 10)
    inside = torch.zeros(2, 1, 10, 10, dtype=torch.bool)
    inside[0, 0, 0, :3] = True  # 0, 1, 2: fewer than K, so the top K is all of them
    found = AnomalyScore().slice_score(heat, inside).tolist()
    assert found == pytest.approx([0.5 * 2 + 0.3 * 1 + 0.2 * 1, 0])


def test_volume_score_is_the_mean_of_the_top_twentieth_of_slices():
    scores = torch.arange(100.0)[torch.randperm(100)]
    assert volume_score(scores) == 97  # 95 to 99
    assert volume_score(torch.tensor([3.0, 7.0])) == 7  # at least one
    with pytest.raises(ValueError, match="without slices"):
        volume_score(torch.zeros(0))


def test_config_through_json_rebuilds_the_score():
    score = AnomalyScore(
        terms="mse", stage_weights=(1, 2), stage_channels=(1, 2), smooth_sigma=1.5, top_k=0.01
    )
    rebuilt = AnomalyScore(**json.loads(json.dumps(score.config)))
    assert rebuilt.config == score.config
    assert rebuilt.score_map(TARGET, RESTORED) == score.score_map(TARGET, RESTORED)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"mse_reduction": "max"}, "mse_reduction"),
        ({"terms": "all"}, "terms"),
        ({"mse_weight": 1.5}, "mse_weight"),
        ({"smooth_sigma": -1}, "smooth_sigma"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"stage_weights": (1.0,)}, "stage_weights"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        AnomalyScore(**options)


def test_foreground_is_that_of_the_slice_itself() -> None:
    three = torch.zeros(2, 3, 4, 5)
    three[:, 0], three[:, 2] = 0.5, 0.5
    three[1, 1, 2, 3] = 0.1
    assert foreground_of(three).shape == (2, 1, 4, 5)
    assert foreground_of(three).nonzero().tolist() == [[1, 0, 2, 3]]
    assert torch.equal(foreground_of(three[:, 1:2]), foreground_of(three))
