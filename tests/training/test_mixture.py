from __future__ import annotations

import pytest
import torch

from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.networks.encoder import empty_encoder
from mcmiad_monai.research.bmad.phantom import write_bmad_phantom
from mcmiad_monai.research.bmad.sets import find_bmad
from mcmiad_monai.training.mixture import MixedFeatures, choose_shots, training_loader


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[FeatureDataset]:
    """Two sets of 12 and 5 images."""
    root = write_bmad_phantom(tmp_path_factory.mktemp("bmad"), sets=["brain", "resc"], size=48)
    encoder = empty_encoder("test_efficientnet.r160_in1k")
    sets = find_bmad(root)
    return [
        FeatureDataset(
            found.cases("train")[:count],
            encoder,
            modality=found.modality,
            size=48,
            min_foreground=0,
            progress=False,
        )
        for found, count in ((sets["brain"], 12), (sets["resc"], 5))
    ]


def test_rows_are_those_of_the_parts_in_order(parts: list[FeatureDataset]) -> None:
    mixed = MixedFeatures(parts)
    assert len(mixed) == 17
    assert mixed.records == parts[0].records + parts[1].records
    for position, (part, row) in {0: (0, 0), 11: (0, 11), 12: (1, 0), 16: (1, 4)}.items():
        assert torch.equal(mixed[position]["image"], parts[part][row]["image"])
    rows = [16, 3, 12]
    assert torch.equal(mixed.batch(rows)[1], parts[0].batch([3])[0])
    assert torch.equal(mixed.foreground(rows)[2], parts[1].foreground([0])[0])
    assert torch.equal(mixed.lesion(rows)[0], parts[1].lesion([4])[0])


def test_statistics_weight_every_part_alike(parts: list[FeatureDataset]) -> None:
    mean, std = MixedFeatures(parts).statistics()
    pools = [part.batch(range(len(part))).double() for part in parts]
    expected = torch.stack([pool.mean((0, 2, 3)) for pool in pools]).mean(0)
    assert torch.allclose(mean.double(), expected, atol=1e-4)
    squares = torch.stack([pool.square().mean((0, 2, 3)) for pool in pools]).mean(0)
    assert torch.allclose(std.double(), (squares - expected**2).sqrt(), atol=1e-3)


def test_one_part_is_drawn_once_an_epoch(parts: list[FeatureDataset]) -> None:
    loader = training_loader(MixedFeatures(parts[:1]), batch_size=4, min_steps=1)
    torch.manual_seed(0)
    drawn = list(loader.sampler)
    assert sorted(drawn) == list(range(12))
    assert drawn != sorted(drawn)


def test_several_parts_are_drawn_with_equal_shares(parts: list[FeatureDataset]) -> None:
    loader = training_loader(MixedFeatures(parts), batch_size=4, min_steps=500)
    torch.manual_seed(0)
    drawn = torch.tensor(list(loader.sampler))
    assert len(drawn) == 2000
    assert (drawn >= 12).double().mean().item() == pytest.approx(0.5, abs=0.04)


def test_few_images_still_make_an_epoch(parts: list[FeatureDataset]) -> None:
    loader = training_loader(MixedFeatures(parts[1:]), batch_size=4, min_steps=3)
    assert len(loader) == 3
    assert all(len(batch["label"]) == 4 for batch in loader)


def test_shots_are_seeded_normal_and_of_different_patients() -> None:
    cases = [{"case": f"c{k}", "patient": f"p{k // 3}", "anomalous": k % 3 == 0} for k in range(12)]
    four = choose_shots(cases, 4, seed=0)
    assert len({case["patient"] for case in four}) == 4
    assert not any(case["anomalous"] for case in four)
    assert four == choose_shots(cases, 4, seed=0)
    assert any(choose_shots(cases, 4, seed=s) != four for s in range(1, 4))
    assert len({case["case"] for case in choose_shots(cases, 8, seed=1)}) == 8
    with pytest.raises(ValueError, match="9 normal images were asked for; there are 8"):
        choose_shots(cases, 9, seed=0)
