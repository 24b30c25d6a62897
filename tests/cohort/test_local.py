"""How many workers there are where nobody says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcmiad_monai.cohort import local
from mcmiad_monai.cohort.local import LocalWorkers, default_workers


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with memory for 500 workers; the folder where GPUs are listed."""
    monkeypatch.setattr(local, "MEMORY", 1.0)
    monkeypatch.setattr(local, "NVIDIA", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("roomy")
def test_a_worker_for_each_core() -> None:
    assert default_workers(12) == default_workers(12, "cpu") == 12


def test_gpu_is_shared_by_two(roomy: Path) -> None:
    assert default_workers(12, "cuda:1") == 2
    (roomy / "0000:01:00.0").mkdir()
    assert default_workers(12) == 2
    assert default_workers(12, "cpu") == 12
    assert default_workers(1) == 1


def test_little_memory_has_few_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MEMORY", 1e18)
    assert default_workers(12, "cpu") == 1


def test_cores_are_shared_out(tmp_path: Path) -> None:
    assert LocalWorkers(list, tmp_path, 3, cores=8)._threads == [3, 3, 2]  # type: ignore[arg-type]
    assert LocalWorkers(list, tmp_path, 3, cores=2)._threads == [1, 1, 1]  # type: ignore[arg-type]
