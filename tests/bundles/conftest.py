"""All four bundles, trained on small phantoms with a small encoder: once a session and a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked_commands import Done, option_words
from small_bundles import shared_once
from small_phantoms import write_mixed_cohort

from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.files.writing import save_torch
from mcmiad_monai.training import handlers

#: Modality and source below the mixed cohort, of each bundle.
BUNDLES = {
    "brain_mri_anomaly": ("brain_mri", "brain_mri/datalist.json"),
    "liver_ct_anomaly": ("liver_ct", "liver_ct/datalist.json"),
    "retina_oct_anomaly": ("retina_oct", "retina_oct/datalist.json"),
    "unified_anomaly": ("unified", "datalist.json"),
}
SMALL: dict[str, Any] = {
    "encoder_name": "test_efficientnet.r160_in1k",
    "weights": "random",
    "text_prior": "hashing",
    "max_epochs": 2,
    "export": False,
    "batch_size": 8,
    "learning_rate": 0.002,
    "device": "cpu",
    "progress": False,
    "dim": 64,
    "hidden": 128,
    "rounds": 2,
}


@dataclass(frozen=True)
class Trained:
    """A trained bundle and the studies it was trained on; its files are read only."""

    name: str
    modality: str
    root: Path
    source: Path

    @property
    def model(self) -> Path:
        """Its model file."""
        return self.root / "models" / "model.pt"

    def config(self, workflow: str = "inference") -> Path:
        """One of its configurations."""
        return self.root / "configs" / f"{workflow}.yaml"

    def options(self, **more: Any) -> dict[str, Any]:
        """Overrides of a run on its studies."""
        return {"dataset_dir": str(self.source), "progress": False, "device": "cpu", **more}

    def small(self, **more: Any) -> dict[str, Any]:
        """Overrides with which it trains in seconds.

        A picture has one slice, which a part of the slices would leave out.
        """
        pictures = self.modality in ("retina_oct", "unified")
        return self.options(**SMALL, slice_range=[0.0, 1.0] if pictures else [0.3, 0.8]) | more


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small studies of every modality; read it, do not write into it."""

    def make(root: Path) -> None:
        shapes: dict[str, Any] = {"brain_shape": (40, 48, 10), "liver_shape": (48, 40, 10)}
        write_mixed_cohort(root, **shapes, retina_shape=(64, 48), progress=False)

    return shared_once(tmp_path_factory, "mixed", make)


@pytest.fixture(scope="session")
def cohort(mixed: Path) -> Path:
    """Its brain studies."""
    return mixed / "brain_mri"


@pytest.fixture(scope="session")
def train(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Train a bundle by name, the first time that a test of the session asks for it."""

    def get(name: str) -> Trained:
        modality, source = BUNDLES[name]

        def make(root: Path) -> None:
            made = Trained(name, modality, copy_bundle(name, root), mixed / source)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(handlers, "save_torch", keep_epochs)
                open_workflow(root, "train", made.small()).run()

        root = shared_once(tmp_path_factory, name, make)
        return Trained(name, modality, root, mixed / source)

    return get


def keep_epochs(content: dict[str, Any], path: Path) -> None:
    """Save a checkpoint, and a copy of it that the next epoch does not overwrite."""
    save_torch(content, path)
    if path.name == "last.pt":
        shutil.copy(path, path.with_name(f"epoch{content['epoch']}.pt"))


@pytest.fixture(params=sorted(BUNDLES))
def trained(request: pytest.FixtureRequest, train: Callable[[str], Trained]) -> Trained:
    """Each trained bundle in turn."""
    return train(request.param)


@pytest.fixture
def brain(train: Callable[[str], Trained]) -> Trained:
    """The brain bundle, for what does not depend on the modality."""
    return train("brain_mri_anomaly")


@pytest.fixture
def monai_process(forked: Any, tmp_path: Path) -> Callable[..., Done]:
    """``python -m monai.bundle COMMAND --option value …``, from a folder that is no bundle."""

    def run(command: str, *, launcher: tuple[str, ...] = (), **options: Any) -> Done:
        line = [*launcher, "-m", "monai.bundle", command, *option_words(options)]
        done: Done = forked.run(line, tmp_path)
        return done

    return run
