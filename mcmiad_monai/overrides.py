"""The command line of ``python -m monai.bundle``: its configuration files and its overrides."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mcmiad_monai.errors import BundleError
from mcmiad_monai.files.reading import read_yaml

#: Options of `monai.bundle run` itself, which are no overrides of the configuration.
RUN_OPTIONS = frozenset(
    (
        *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file"),
        *("tracking", "args_file", "workflow_name"),
    )
)

#: Key of the options of the method in train.yaml.
METHOD = "method"

#: Words of YAML, and what Python's are for them.
WORDS = {"true": "True", "false": "False", "null": "None", "none": "None"}


def monai_command(argv: Sequence[str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Options and configuration files of ``python -m monai.bundle``; both empty for others.

    Parameters
    ----------
    argv : sequence of str, optional
        Command line with the program first; that of this process by default.
    """
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


def config_keys(config_files: Iterable[str | Path]) -> set[str]:
    """Top-level keys of configuration files."""
    contents = (read_yaml(f) for f in config_files)
    return {key for content in contents for key in content}


def check_overrides(overrides: Iterable[str], config_files: Sequence[str | Path]) -> None:
    """Refuse overrides that MONAI would ignore: their first part is in no configuration.

    Raises
    ------
    BundleError
        With the close matches of each unknown name.
    """
    import difflib

    known = config_keys(config_files)
    # nested ids are split at # and ::
    first = {override: override.replace("::", "#").split("#")[0] for override in overrides}
    unknown = sorted(o for o, part in first.items() if part not in known | RUN_OPTIONS)
    if not unknown:
        return
    ids = {name: name for name in known}
    ids |= {name: f"{METHOD}#{name}" for name in _method_options(known) - known}
    shown = []
    for override in unknown:
        name = first[override]
        close = [name] if name in ids else difflib.get_close_matches(name, sorted(ids), n=2)
        hint = " or ".join(f"--{ids[match]}" for match in close)
        shown.append(f"--{override}" + (f" (did you mean {hint}?)" if hint else ""))
    raise BundleError(
        f"unknown override {'; '.join(shown)}. The configuration has: {', '.join(sorted(known))}."
    )


def literal(value: Any) -> Any:
    """An override as MONAI takes it unchanged: in a text it would turn ``#`` into ``::``.

    Expressions, references and macros stay as they are; a text with ``#`` becomes an expression.
    """
    if not isinstance(value, str) or "#" not in value or value.startswith(("$", "@", "%")):
        return value
    return "$" + repr(value).replace("#", "\\x23")


def place_method_options(overrides: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Overrides in which an option of the method has its id: ``dim`` becomes ``method#dim``.

    Parameters
    ----------
    known : set of str
        Top-level keys of the configuration; these stay as they are.
    """
    options = _method_options(known) - known
    return {f"{METHOD}#{k}" if k in options else k: v for k, v in overrides.items()}


def _method_options(known: set[str]) -> frozenset[str]:
    """Options of the method; none for a configuration that trains nothing."""
    if METHOD not in known:
        return frozenset()
    from mcmiad_monai.training.method import option_names

    return option_names()


def refuse_unknown_overrides(argv: Sequence[str] | None = None) -> None:
    """Check the command line of ``python -m monai.bundle run``; MONAI ignores unknown overrides.

    Does nothing where Python code made the workflow: there, `open_workflow` checks.

    Parameters
    ----------
    argv : sequence of str, optional
        As for `monai_command`.

    Raises
    ------
    BundleError
        If a top-level override is unknown, a switch would arrive as text, which counts as true, or
        a text has a ``#``.
    """
    given, config_files = monai_command(argv)
    if not config_files:
        return
    check_overrides(given, config_files)
    for name, value in given.items():
        if name not in RUN_OPTIONS and literal(value) != value:
            raise BundleError(
                f"--{name} {value} has a #, which MONAI's command line turns into ::. Rename the "
                f'path, or write --{name} "{literal(value)}".'
            )
        meant = WORDS.get(value.lower()) if isinstance(value, str) else None
        if meant not in (None, value):
            raise BundleError(
                f"--{name} {value} would arrive as text, and any text counts as true; MONAI's "
                f"command line takes Python's words: --{name} {meant}."
            )
