"""A bundle trained with augmented copies and an early stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mcmiad_monai import load
from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.data import features


def test_head_is_trained_on_copies_until_it_no_longer_improves(
    train: Callable[[str], Any], tmp_path: Path
) -> None:
    plain = train("brain_mri_anomaly")  # with one copy
    made = replace(plain, root=copy_bundle("brain_mri_anomaly", tmp_path / "bundle"))
    # at this learning rate no weight changes, so that the second epoch is no better than the first
    options = made.small(copies=3, patience=1, max_epochs=6, learning_rate=1e-30)
    open_workflow(made.root, "train", options).run()
    state = torch.load(made.root / "models" / "last.pt", weights_only=True)
    assert state["epoch"] == 2
    before = torch.load(plain.root / "models" / "last.pt", weights_only=True)
    assert state["epoch_length"] > 1.8 * before["epoch_length"]  # 4 of each slice, not 2
    cards = [load(m.root, device="cpu").detector.trained_with for m in (plain, made)]
    assert cards[0]["training_slices"] == cards[1]["training_slices"]
    assert [card["method"]["copies"] for card in cards] == [1, 3]


def test_a_memory_alone_encodes_no_copies(
    train: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("copies are for the head alone")

    monkeypatch.setattr(features, "augmented_copies", refuse)
    plain = train("brain_mri_anomaly")
    made = replace(plain, root=copy_bundle("brain_mri_anomaly", tmp_path / "bundle"))
    open_workflow(made.root, "train", made.small(parts="memory")).run()
    assert (made.root / "models" / "model.pt").exists()
