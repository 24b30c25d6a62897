"""Masks of a finished model on its validation studies with a lesion, and what the card says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from heat_of_features import GRID, SIZE, HeatOfFeatures
from kept_features import kept_features

from mcmiad_monai.calibration import Calibration, UnifiedCalibration
from mcmiad_monai.data.feature_store import SliceRecord
from mcmiad_monai.data.features import FeatureDataset
from mcmiad_monai.training.mask_check import MaskCheck, check_masks
from mcmiad_monai.training.model_card import model_card

CALIBRATION = Calibration(1.0, 0.005, 2.0, 2.0, 0.05, 1000, 40, 4, 4)
PROVENANCE = {
    "encoder": {"weights": "imagenet"},
    "text_prior": {"encoder": "clip"},
    "training": {"odd_studies": {"training": 0, "held-out": 1}},
}


def validation(heats: list[float], *, masks: bool = True) -> FeatureDataset:
    """Studies of two slices; the second has a lesion at the left, hot there, unless heat is 0."""
    features = torch.full((2 * len(heats), 1, GRID, GRID), 0.1)
    lesion = torch.zeros(2 * len(heats), 1, SIZE, SIZE, dtype=torch.bool)
    records = []
    for study, heat in enumerate(heats):
        features[2 * study + 1, :, :, :2] = heat
        lesion[2 * study + 1, ..., : SIZE // 4] = heat > 0 and masks
        records += [
            SliceRecord(f"s{study}", i, i == 1 and heat > 0, f"p{study}", "brain_mri")
            for i in range(2)
        ]
    return kept_features(features, records=records, lesion=lesion, size=SIZE)


def check(dataset: FeatureDataset, calibration: Any = CALIBRATION) -> MaskCheck:
    detector: Any = HeatOfFeatures()
    return check_masks(detector, dataset, calibration, batch_size=3)


def test_dice_is_that_of_masks_at_one_over_all_slices_of_studies_with_a_lesion() -> None:
    found = check(validation([0.9, 3.0, 0.0]))
    assert (found.studies, found.empty) == (2, 1)
    assert found.dice == pytest.approx([0.0, 2 * 8 / (16 + 8)])
    assert not found.finds_nothing
    assert found.summary() == (
        "on 1 of 2 validation studies with a lesion no voxel exceeds 1.0; mean Dice at the "
        "threshold 0.333 (2 studies)"
    )


def test_studies_with_a_label_but_no_mask_are_counted_without_dice() -> None:
    found = check(validation([0.9, 0.8], masks=False))
    assert found.finds_nothing
    assert found.summary() == "on 2 of 2 validation studies with a lesion no voxel exceeds 1.0"


def test_one_is_the_threshold_of_the_modality_in_a_unified_model() -> None:
    dataset = validation([0.9])
    # the network is in the unit of the other modality, which is twice as large
    other = Calibration(2.0, 0.005, 2.0, 2.0, 0.05, 1000, 40, 4, 4)
    assert check(dataset, UnifiedCalibration({"brain_mri": other, "liver_ct": other})).empty == 1
    assert (
        check(dataset, UnifiedCalibration({"brain_mri": CALIBRATION, "liver_ct": other})).empty == 0
    )


def test_card_warns_of_empty_masks_first() -> None:
    masks = check(validation([0.9] * 12))
    card = model_card(PROVENANCE, CALIBRATION, masks=masks)
    told = "on 12 of 12 validation studies with a lesion no voxel exceeds 1.0"
    assert card.index(f"**The masks are empty**: {told}") < card.index("## Thresholds")
    found = model_card(PROVENANCE, CALIBRATION, masks=check(validation([3.0])))
    assert "masks are empty" not in found
    assert "mean Dice at the threshold 0.667" in found
    none = model_card(PROVENANCE, CALIBRATION, masks=check(validation([0.0])))
    assert "No validation study has a lesion: the masks were not checked." in none


def test_card_tells_of_odd_studies_without_names_and_only_if_there_are() -> None:
    odd = {"training": {}, "held-out": {"case_7": "heat is 1.1"}}
    card = model_card(PROVENANCE, CALIBRATION, odd=odd)
    assert "## Odd healthy studies" in card
    assert "- One of the held-out studies: heat is 1.1" in card
    assert "Odd healthy" not in model_card(PROVENANCE, CALIBRATION, odd={"training": {}})
    assert "case_7" not in card + json.dumps(PROVENANCE)
