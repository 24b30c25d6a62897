"""Bundles on disk: where they are, how a copy is made, and how a workflow of one is opened."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mcmiad_monai.errors import BundleError
from mcmiad_monai.overrides import (
    check_overrides,
    config_keys,
    literal,
    monai_command,
    place_method_options,
    refuse_unknown_overrides,
)

__all__ = [
    "BundleError",
    "copy_bundle",
    "locate",
    "open_workflow",
    "refuse_unknown_overrides",
    "shipped_bundles",
]


def shipped_bundles() -> dict[str, Path]:
    """Bundles that come with the installation, by name."""
    root = Path(str(files("mcmiad_monai.bundles")))
    return {path.name: path for path in sorted(root.glob("*_anomaly"))}


def copy_bundle(name: str, destination: str | Path) -> Path:
    """Copy a shipped bundle into a folder of one's own, where it can be trained.

    Parameters
    ----------
    name : str
        E.g. ``"brain_mri_anomaly"``.
    destination : path
        Becomes the bundle's root. An earlier copy loses its configurations and keeps its models.

    Raises
    ------
    BundleError
        If there is no such bundle, or the destination is a folder with other content.
    """
    bundles = shipped_bundles()
    if name not in bundles:
        raise BundleError(f"bundle {name!r} is not shipped; choose one of {sorted(bundles)}.")
    target = Path(destination)
    if target.exists() and any(target.iterdir()) and not (target / "configs").is_dir():
        raise BundleError(
            f"{target} is not empty and not a bundle; name a new folder for the trained bundle."
        )
    ignore = shutil.ignore_patterns("__pycache__", "*.pt", "*.safetensors", "eval")
    shutil.copytree(bundles[name], target, dirs_exist_ok=True, ignore=ignore)
    return target


def locate(bundle_root: str, *parts: str) -> str:
    """Path inside a bundle, for its configurations.

    In a configuration ``bundle_root`` is ``.``, which MONAI takes for the working directory. On the
    command line of ``monai.bundle`` it is the bundle of the first configuration file instead, so
    that the command works from any folder; an override of it is taken as it is.

    Parameters
    ----------
    bundle_root : str
        Of the configuration.
    *parts : str
        Folders and file below it.
    """
    given, config_files = monai_command()
    root = Path(bundle_root)
    if config_files and "bundle_root" not in given:
        configs = Path(config_files[0]).resolve().parent
        root = configs.parent / root if configs.name == "configs" else root
    return str(root.joinpath(*parts))


def open_workflow(
    root: str | Path,
    workflow: str | Sequence[str],
    overrides: Mapping[str, Any] | None = None,
    *,
    tracking: str | None = None,
) -> Any:
    """Build a workflow of a bundle, ready to ``run()``.

    Parameters
    ----------
    root : path
        The bundle's folder.
    workflow : str or sequence of str
        Names of configurations, e.g. ``"train"`` or ``("train", "evaluate")``.
    overrides : mapping, optional
        By id, as on the command line; options of the method also by their bare names.
    tracking : str, optional
        ``"mlflow"`` or a settings file, as MONAI takes it.

    Returns
    -------
    monai.bundle.ConfigWorkflow
        Initialised.

    Raises
    ------
    BundleError
        If the folder is no bundle or an override is unknown.
    """
    from monai.bundle import create_workflow

    base = Path(root).resolve()
    names = [workflow] if isinstance(workflow, str) else list(workflow)
    config_files = [base / "configs" / f"{name}.yaml" for name in names]
    missing = [str(f) for f in config_files if not f.is_file()]
    if missing:
        raise BundleError(f"{base} is no bundle of this project: {', '.join(missing)} not found.")
    own = place_method_options(overrides or {}, config_keys(config_files))
    given = {"bundle_root": str(base), **own}
    check_overrides(given, config_files)
    return create_workflow(
        config_file=[str(f) for f in config_files],
        workflow_type="inference" if names[0] == "inference" else "train",
        tracking=tracking,
        **{key: literal(value) for key, value in given.items()},
    )
