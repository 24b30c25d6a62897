"""Bundles on disk: where they are, how a copy is made, and how a workflow of one is opened."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from mcmiad_monai.errors import BundleError
from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.files.writing import replace_atomically, write_text
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
    "compare_checksums",
    "copy_bundle",
    "locate",
    "open_workflow",
    "refuse_unknown_overrides",
    "renew_checksum",
    "replace_bundle",
    "shipped_bundles",
    "write_checksums",
]

#: Digests of the files of a trained bundle, as ``sha256sum`` writes and reads them.
CHECKSUMS = "SHA256SUMS"
#: Folders and files that belong to the training and not to the model.
OF_TRAINING = ("eval", "models/last.pt", "models/best.pt")


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
    foreign = target.exists() and not (target / "configs").is_dir()
    # the folder of the lock may be there already
    if foreign and any(path != target / "models" for path in target.rglob("[!.]*")):
        raise BundleError(
            f"{target} is not empty and not a bundle; name a new folder for the trained bundle."
        )
    ignore = shutil.ignore_patterns("__pycache__", "*.pt", "*.safetensors", "eval")
    shutil.copytree(bundles[name], target, dirs_exist_ok=True, ignore=ignore)
    return target


def replace_bundle(made: Path, root: Path) -> None:
    """Put a newly trained bundle in the place of an older one, its model last; ``made`` goes."""
    order = {"models/model.pt": 1, CHECKSUMS: 2}
    if not (made / "models" / "model.pt").is_file():
        raise BundleError(f"{made} has no model any more; {root} is as it was. Train again.")
    files = {path.relative_to(made).as_posix(): path for path in made.rglob("[!.]*")}
    for name in sorted(files, key=lambda name: order.get(name, 0)):
        if files[name].is_file():
            replace_atomically(root / name, partial(shutil.copyfile, files[name]))
    write_checksums(root)
    shutil.rmtree(made)


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


def checksums(root: Path) -> dict[str, str]:
    """SHA-256 of the files of a bundle by their paths in it, without those of the training."""
    # what a link leads to is not looked through; as a link to a folder it is still named
    files = (p for p in sorted(root.rglob("*")) if p.is_file() or p.is_symlink())
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {
        name: file_sha256(path) if path.is_file() else "a link"
        for name, path in names.items()
        if name != CHECKSUMS
        and not any(name == of or name.startswith(f"{of}/") for of in OF_TRAINING)
        and not any(part.startswith((".", "__pycache__")) for part in Path(name).parts)
    }


def write_checksums(root: str | Path) -> None:
    """Write ``SHA256SUMS`` of a bundle, anew."""
    _write_checksums(Path(root), checksums(Path(root)))


def _write_checksums(root: Path, digests: Mapping[str, str]) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    write_text(root / CHECKSUMS, text)


def _stored_checksums(root: Path) -> dict[str, str]:
    path = root / CHECKSUMS
    if not path.is_file():
        raise BundleError(
            f"{path} does not exist, and says what the files of a bundle were. It is written at "
            "the end of mcmiad train; a bundle of an older version has none: train it again."
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def renew_checksum(path: str | Path) -> None:
    """Put the digest of a file that was written anew into the ``SHA256SUMS`` of its bundle."""
    file = Path(path).resolve()
    root = file.parent.parent  # of models/model.onnx
    if (root / CHECKSUMS).is_file():
        name = file.relative_to(root).as_posix()
        _write_checksums(root, {**_stored_checksums(root), name: file_sha256(file)})


def compare_checksums(root: str | Path) -> dict[str, str]:
    """What differs between a bundle and its ``SHA256SUMS``.

    Returns
    -------
    dict of str to str
        Path in the bundle → ``"changed"``, ``"missing"`` or ``"new"``; empty if nothing differs.

    Raises
    ------
    BundleError
        If there is no ``SHA256SUMS``.
    """
    stored, found = _stored_checksums(Path(root)), checksums(Path(root))
    differs = {
        name: "changed" for name in stored.keys() & found.keys() if stored[name] != found[name]
    }
    differs |= dict.fromkeys(stored.keys() - found.keys(), "missing")
    differs |= dict.fromkeys(found.keys() - stored.keys(), "new")
    return dict(sorted(differs.items()))
