from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_heads import small_detector

from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.networks.score import AnomalyScore

SIZE = 112


def scored_by(**options: Any) -> MCMIADDetector:
    encoder = empty_encoder("test_efficientnet", grid=7, pool="area")
    return small_detector(encoder, AnomalyScore(**options))


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_heatmap_has_the_size_of_the_image_and_is_not_negative():
    with torch.no_grad():
        heatmap = scored_by()(torch.rand(3, 1, 96, 128))
    assert heatmap.shape == (3, 1, 96, 128)
    assert heatmap.dtype == torch.float32
    assert heatmap.min() >= 0


def test_heatmap_from_kept_features_is_the_same():
    detector = scored_by()
    with torch.no_grad():
        features = detector.features(images())
        kept = detector.heatmap_from_features(features, images() > 0)
        assert torch.equal(kept, detector(images()))


def test_heat_scale_divides_the_score():
    detector = scored_by()
    with torch.no_grad():
        plain = detector(images())
        detector.heat_scale.fill_(4.0)
        assert torch.allclose(detector(images()), plain / 4)


def test_smoothing_of_the_score_reaches_the_heatmap():
    with torch.no_grad():
        rough, smooth = (scored_by(smooth_sigma=s)(images()) for s in (0.0, 6.0))
    assert smooth.std() < rough.std()


def test_slices_of_a_batch_do_not_touch_each_other():
    detector = scored_by()
    with torch.no_grad():
        together = detector(images(3))
        alone = torch.cat([detector(image[None]) for image in images(3)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_only_the_head_is_trained():
    detector = scored_by()
    trained = {name.split(".")[0] for name, p in detector.named_parameters() if p.requires_grad}
    assert trained == {"head"}
    detector.train()
    assert detector.head.training
    assert not detector.encoder.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_close_heatmaps_in_float32(dtype):
    detector = scored_by()
    with torch.no_grad():
        expected = detector(images())
        with torch.autocast("cpu", dtype):
            mixed = detector(images())
        pure = detector.to(dtype)(images())
    for heatmap in (mixed, pure):
        assert heatmap.dtype == torch.float32
        assert F.cosine_similarity(heatmap.flatten(), expected.flatten(), 0) > 0.99


def test_compiled_detector_gives_the_same_heatmap():
    detector = scored_by()
    compiled = torch.compile(detector, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(images()), detector(images()), rtol=1e-4, atol=1e-4)


def test_exported_detector_takes_any_batch():
    detector = scored_by()
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(detector, (images(2),), dynamic_shapes=({0: batch},))
        for count in (1, 2, 5):
            found = program.module()(images(count))
            assert torch.allclose(found, detector(images(count)), rtol=1e-4, atol=1e-4)


def test_traced_detector_gives_the_same_heatmap_for_other_images():
    detector = scored_by()
    with torch.no_grad():
        traced = torch.jit.trace(detector, images(2), check_trace=False)
        other = images(3).flip(0)
        assert torch.allclose(traced(other), detector(other), rtol=1e-4, atol=1e-4)


def test_scripted_detector_gives_the_same_heatmap_for_any_batch():
    detector = small_detector(empty_encoder("test_efficientnet")).eval()
    smooth = F.interpolate(torch.rand(3, 1, 8, 8), (224, 224), mode="bilinear")
    scripted = torch.jit.script(detector)
    with torch.no_grad():
        for count in (1, 3):
            expected = detector(smooth[:count])
            assert torch.allclose(scripted(smooth[:count]), expected, rtol=1e-4, atol=1e-4)


def test_a_head_of_another_encoder_is_refused():
    detector = scored_by()
    with pytest.raises(ValueError, match="the head takes 120 channels on a grid of 7"):
        MCMIADDetector(empty_encoder("test_efficientnet"), detector.head)
