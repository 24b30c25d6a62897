"""Bundles on disk: where they are, how a copy is made, and which overrides they accept."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

#: Options of `monai.bundle run` itself, which are no overrides of the configuration.
RUN_OPTIONS = frozenset(
    {
        "run_id",
        "init_id",
        "final_id",
        "meta_file",
        "config_file",
        "logging_file",
        "tracking",
        "args_file",
        "workflow_name",
    }
)


#: Words of YAML, and what Python's are for them.
WORDS = {"true": "True", "false": "False", "null": "None", "none": "None"}


#: Key of the options of the method in train.yaml.
METHOD = "method"


class BundleError(ValueError):
    """A bundle, or an override of it, is not as it has to be."""


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
        Becomes the bundle's root. Files of an earlier copy are overwritten, models are kept.

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


def config_keys(config_files: Iterable[str | Path]) -> set[str]:
    """Top-level keys of configuration files."""
    keys: set[str] = set()
    for file in config_files:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        keys |= set(content)
    return keys


def unknown_overrides(overrides: Iterable[str], known: set[str]) -> list[str]:
    """Overrides whose first part no configuration has; nested ids are split at ``#`` and ``::``."""
    return sorted(o for o in overrides if first_part(o) not in known | RUN_OPTIONS)


def first_part(override: str) -> str:
    """Top-level key of an override such as ``train#trainer#max_epochs``."""
    return override.replace("::", "#").split("#")[0]


def check_overrides(overrides: Iterable[str], config_files: Sequence[str | Path]) -> None:
    """Refuse overrides that would be silently ignored.

    Raises
    ------
    BundleError
        With the close matches of each unknown name.
    """
    import difflib

    known = config_keys(config_files)
    unknown = unknown_overrides(overrides, known)
    if unknown:
        names = {name: name for name in known}
        names |= {o: f"{METHOD}#{o}" for o in _method_options(known) if o not in known}
        shown = []
        for name in unknown:
            own = first_part(name)
            close = [own] if own in names else difflib.get_close_matches(own, sorted(names), n=2)
            hint = " or ".join(f"--{names[match]}" for match in close)
            shown.append(f"--{name}" + (f" (did you mean {hint}?)" if hint else ""))
        raise BundleError(
            f"unknown override {'; '.join(shown)}. The configuration has: "
            f"{', '.join(sorted(known))}."
        )


def _method_options(known: set[str]) -> frozenset[str]:
    """Options of the method; none for a configuration that trains nothing."""
    if METHOD not in known:
        return frozenset()
    from mcmiad_monai.training.method import option_names

    return option_names()


def place_method_options(overrides: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Overrides in which an option of the method has its id: ``dim`` becomes ``method#dim``.

    Parameters
    ----------
    known : set of str
        Top-level keys of the configuration; these stay as they are.
    """
    options = _method_options(known) - known
    return {f"{METHOD}#{k}" if k in options else k: v for k, v in overrides.items()}


def refuse_unknown_overrides(argv: Sequence[str] | None = None) -> None:
    """Check the command line of ``python -m monai.bundle run``; MONAI ignores what it cannot place.

    Does nothing where the workflow was made by Python code: there, :func:`open_workflow` checks.

    Parameters
    ----------
    argv : sequence of str, optional
        Command line with the program first; that of this process by default.

    Raises
    ------
    BundleError
        If a top-level override is unknown, or a switch would arrive as text, which counts as true.
    """
    given, config_files = monai_command(argv)
    if not config_files:
        return
    check_overrides(given, config_files)
    for name, value in given.items():
        meant = WORDS.get(value.lower()) if isinstance(value, str) else None
        if meant not in (None, value):
            raise BundleError(
                f"--{name} {value} would arrive as text, and any text counts as true; MONAI's "
                f"command line takes Python's words: --{name} {meant}."
            )


def root_of_command(argv: Sequence[str] | None = None) -> str:
    """Root of the bundle whose configuration the command line names; "." where it names none.

    MONAI takes the working directory, so that a bundle would find its model only when the command
    is run from its own folder.

    Parameters
    ----------
    argv : sequence of str, optional
        Command line with the program first; that of this process by default.
    """
    _, config_files = monai_command(argv)
    if not config_files or Path(config_files[0]).resolve().parent.name != "configs":
        return "."
    return str(Path(config_files[0]).resolve().parents[1])


def monai_command(argv: Sequence[str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Options and configuration files of ``python -m monai.bundle``; both empty for others."""
    arguments = list(sys.argv if argv is None else argv)
    if not arguments or Path(arguments[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return {}, []
    given = command_line_options(arguments[1:])
    if "args_file" in given:
        from monai.bundle import ConfigParser

        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    value = given.get("config_file", [])
    config_files = yaml.safe_load(value) if isinstance(value, str) and value[:1] == "[" else value
    if isinstance(config_files, str):
        config_files = config_files.split(",")
    return given, [str(f).strip() for f in config_files]


def command_line_options(arguments: Sequence[str]) -> dict[str, Any]:
    """``--name value`` and ``--name=value`` pairs; Fire also takes ``-name`` and hyphens."""
    options: dict[str, Any] = {}
    name: str | None = None
    for argument in arguments:
        is_number = argument[1:2].isdigit() or argument[1:2] == "."
        if argument.startswith("-") and len(argument) > 1 and not is_number:
            name, _, value = argument.lstrip("-").partition("=")
            name = name if "#" in name or "::" in name else name.replace("-", "_")
            options[name] = value
        elif name is not None:
            options[name] = argument
    return options


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
        **given,
    )
