"""Laying out an app needs no MONAI Label."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mcmiad_monai.bundle import copy_bundle
from mcmiad_monai.errors import BundleError
from mcmiad_monai.monailabel.layout import lay_out_app


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with what a training leaves."""
    root = copy_bundle("brain_mri_anomaly", tmp_path / "brain")
    for name in ("model.pt", "last.pt", "best.pt"):
        (root / "models" / name).write_bytes(b"weights")
    (root / "eval").mkdir()
    (root / "eval" / "features.f16").write_bytes(b"features")
    return root


def test_app_has_main_readme_and_the_bundle_without_checkpoints(
    bundle: Path, tmp_path: Path
) -> None:
    app = lay_out_app(tmp_path / "app", [bundle])
    tree = ast.parse((app / "main.py").read_text())
    imported = [n.names[0].name for n in tree.body if isinstance(n, ast.ImportFrom)]
    assert imported == ["MCMIADApp"]
    readme = (app / "README.md").read_text()
    assert "Models: brain." in readme
    assert "not for diagnosis" in readme
    assert '{"normal": true}' in readme
    models = sorted(p.name for p in (app / "model" / "brain" / "models").iterdir())
    assert models == ["README.md", "model.pt"]
    assert not (app / "model" / "brain" / "eval").exists()
    assert (app / "model" / "brain" / "configs" / "inference.yaml").is_file()
    assert [p.name for p in (app / "model").iterdir()] == ["brain"]


def test_bundles_are_added_and_never_overwritten(bundle: Path, tmp_path: Path) -> None:
    app = lay_out_app(tmp_path / "app", [bundle])
    trained = app / "model" / "brain" / "models" / "model.pt"
    trained.write_bytes(b"trained in the app")
    with pytest.raises(BundleError, match="two models brain"):
        lay_out_app(app, [bundle])
    assert trained.read_bytes() == b"trained in the app"
    other = bundle.rename(tmp_path / "second")
    lay_out_app(app, [other])
    assert "Models: brain, second." in (app / "README.md").read_text()
    lay_out_app(app, [])  # renews main.py


def test_same_name_twice_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = copy_bundle("brain_mri_anomaly", tmp_path / "elsewhere" / "brain")
    with pytest.raises(BundleError, match="two models brain"):
        lay_out_app(tmp_path / "app", [bundle, copy])
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize("name", ["my bundle", ".hidden", "a#b"])
def test_names_that_cannot_stand_in_an_address_are_refused(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(BundleError, match="names the model"):
        lay_out_app(tmp_path / "app", [bundle.rename(tmp_path / name)])


def test_what_is_no_bundle_or_no_app_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="at least one bundle"):
        lay_out_app(tmp_path / "app", [])
    with pytest.raises(BundleError, match="is no bundle"):
        lay_out_app(tmp_path / "app", [tmp_path])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="no app of this project"):
        lay_out_app(tmp_path / "other", [bundle])
