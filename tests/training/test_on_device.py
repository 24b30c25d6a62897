"""Batches from a device hold what batches of the host hold."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mcmiad_monai.training import on_device
from mcmiad_monai.training.on_device import FeaturesOnDevice, loader


class Known:
    """Features that tell their position."""

    def __init__(self, count: int) -> None:
        self.records: Any = [SimpleNamespace(anomalous=i % 3 == 0) for i in range(count)]
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict[str, Any]:
        label = int(self.records[position].anomalous)
        return {"image": self.kept([position])[0].float(), "label": torch.tensor(label)}

    def kept(self, positions: Sequence[int]) -> Tensor:
        self.asked += positions
        return torch.tensor(positions, dtype=torch.float16).view(-1, 1, 1, 1).expand(-1, 2, 3, 3)


@pytest.fixture(params=["fits", "does not fit"])
def fits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    found = bool(request.param == "fits")
    monkeypatch.setattr(on_device, "free_memory", lambda _: 10**9 if found else 100)
    monkeypatch.setattr(on_device, "CHUNK", 4)
    return found


def test_batches_are_those_of_the_host(fits: bool) -> None:
    data = Known(10)
    placed = FeaturesOnDevice(data, torch.device("cpu"))
    data.asked.clear()
    batch = placed.__getitems__([7, 3, 3])
    assert batch["image"].dtype == torch.float16
    assert batch["image"].tolist() == data.kept([7, 3, 3]).tolist()
    assert batch["label"].tolist() == [0, 1, 1]
    assert placed[6]["label"] == 1
    assert (data.asked == [7, 3, 3]) == fits  # else the host is asked too


def test_loader_draws_the_same_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    data, drawn = Known(7), []
    for name in ("cpu", "meta"):
        with monkeypatch.context() as patch:
            patch.setattr(on_device, "free_memory", lambda _: 0)
            torch.manual_seed(0)
            drawn.append(loader(data, name, batch_size=3, shuffle=True))
    positions = []
    for one in drawn:
        data.asked.clear()
        torch.manual_seed(0)
        sizes = [len(batch["label"]) for batch in one]
        positions.append((sizes, list(data.asked)))
    assert positions[0] == positions[1]
    assert sorted(positions[0][1]) == list(range(7))
