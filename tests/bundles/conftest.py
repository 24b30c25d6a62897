"""All four bundles, trained on small phantoms with a small encoder; one training a bundle."""

from __future__ import annotations

import ast
import io
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from forked_commands import Done, option_words
from small_phantoms import write_mixed_cohort

from mcmiad_monai.bundle import copy_bundle, open_workflow
from mcmiad_monai.files import save_torch
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
    """A trained bundle and the studies it was trained on."""

    name: str
    modality: str
    root: Path
    source: Path

    def options(self, **more: Any) -> dict[str, Any]:
        """Overrides of a run on its studies."""
        return {"dataset_dir": str(self.source), "progress": False, "device": "cpu", **more}


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small studies of every modality; read it, do not write into it."""
    return write_mixed_cohort(
        tmp_path_factory.mktemp("mixed") / "cohort",
        brain_shape=(40, 48, 10),
        liver_shape=(48, 40, 10),
        retina_shape=(64, 48),
        progress=False,
    )


@pytest.fixture(scope="session")
def train(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Train a bundle by name, the first time that it is asked for."""
    done: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in done:
            modality, source = BUNDLES[name]
            root = copy_bundle(name, tmp_path_factory.mktemp(name) / name)
            done[name] = Trained(name, modality, root, mixed / source)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(handlers.DiskSaver, "__call__", keep_epochs)
                open_workflow(root, "train", done[name].options(**small_options(name))).run()
        return done[name]

    return get


def keep_epochs(self: Any, content: dict[str, Any], filename: str, *_: Any) -> None:
    """Save a checkpoint, and a copy of it that the next epoch does not overwrite."""
    save_torch(content, self.dirname / filename)
    if filename == "last.pt":
        shutil.copy(self.dirname / filename, self.dirname / f"epoch{content['epoch']}.pt")


@pytest.fixture(scope="session")
def small() -> Callable[[str], dict[str, Any]]:
    """Overrides with which a bundle trains in seconds."""
    return small_options


def small_options(name: str) -> dict[str, Any]:
    """A picture has one slice, which a part of the slices would leave out."""
    pictures = name in ("retina_oct_anomaly", "unified_anomaly")
    return {**SMALL, "slice_range": [0.0, 1.0] if pictures else [0.3, 0.8]}


@pytest.fixture(params=sorted(BUNDLES))
def trained(request: pytest.FixtureRequest, train: Callable[[str], Trained]) -> Trained:
    """Each trained bundle in turn; its files are read by the tests."""
    return train(request.param)


@pytest.fixture
def monai_process(forked: Any, tmp_path: Path) -> Callable[..., Done]:
    """``python -m monai.bundle COMMAND --option value …``, from a folder that is no bundle."""

    def run(command: str, *, launcher: tuple[str, ...] = (), **options: Any) -> Done:
        line = [*launcher, "-m", "monai.bundle", command, *option_words(options)]
        return forked.run(line, tmp_path)

    return run


@pytest.fixture
def monai_bundle(
    request: pytest.FixtureRequest, monai_process: Callable[..., Done], tmp_path: Path
) -> Callable[..., Done]:
    """A command of MONAI: for one bundle as a process, for the others the function behind it.

    Starting Python with MONAI takes longer than most commands.
    """
    if "unified" in request.node.name:
        return monai_process

    def call(command: str, **options: Any) -> Done:
        given = {
            key: ast.literal_eval(value) if str(value)[:1] in "[{TF" else str(value)
            for key, value in options.items()
        }
        if "config_file" in given:  # which as a process is found from the command line
            given["bundle_root"] = str(Path(given["config_file"]).parents[1])
        told = io.StringIO()
        handler = logging.StreamHandler(told)
        logging.getLogger("monai").addHandler(handler)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                getattr(monai.bundle, command)(**given)
        except Exception as error:
            return Done(1, f"{told.getvalue()}{error}")
        finally:
            logging.getLogger("monai").removeHandler(handler)
        return Done(0, told.getvalue())

    return call
