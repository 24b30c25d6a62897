"""What tests of cohorts share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from poisoned import open_poisoned
from stressed import make_model

from mcmiad_monai.cohort import opening


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model; read it."""
    return make_model(tmp_path_factory.mktemp("model") / "model.pt", slice_range=(0.0, 1.0))


@pytest.fixture
def studies(cohort: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of studies of these names; one with "refused" in its name is no image."""
    images = sorted(cohort.rglob("image.nii.gz"))

    def make(*names: str) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        for k, name in enumerate(names):
            file = folder / f"{name}.nii.gz"
            if "refused" in name:
                file.write_bytes(b"no image")
            else:
                shutil.copy(images[k % len(images)], file)
        return folder

    return make


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that do what the names of studies say; see `open_poisoned`."""
    monkeypatch.setattr(opening, "open_work", open_poisoned)
