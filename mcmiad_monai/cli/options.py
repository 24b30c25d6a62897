"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcmiad_monai.files.formats import is_address
from mcmiad_monai.modality import MODALITIES

#: What `add_subparsers` returns; argparse has no public name for it.
Commands = Any
SPLITS = ("train", "val", "test", "all")
#: Names of the method's presets; `mcmiad_monai.training.method` has them, and imports torch.
PRESETS = ("default", "paper", "moead")
METHODS = ("both", "memory", "head")
#: Files of a study: NIFTI, or pictures for pictures; and DICOM objects, as
#: `mcmiad_monai.dicom.objects` has them, which imports torch.
NIFTI, DICOM_KINDS = "nifti", ("seg", "pmap", "sr", "sc")


def add_command(
    commands: Commands, name: str, run: Callable[..., int | None] | None, text: str
) -> argparse.ArgumentParser:
    """Add the parser of a command.

    Parameters
    ----------
    commands : subparsers action
    name, text : str
        Its name and its help.
    run : callable, optional
        Does the command; None for a command that has actions of its own. Takes the options and
        returns the exit code, None for 0.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    add_verbosity(parser, default=argparse.SUPPRESS)
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def add_verbosity(parser: argparse.ArgumentParser, default: Any = False) -> None:
    """Add ``-v`` and ``-q``, which may stand before the command or after it."""
    group = parser.add_mutually_exclusive_group()
    for short, name, text in (
        ("-v", "--verbose", "show all messages, and the trace of an error"),
        ("-q", "--quiet", "show errors only: no messages, no progress bars"),
    ):
        group.add_argument(short, name, action="store_true", default=default, help=text)


def add_source(
    parser: argparse.ArgumentParser, text: str, *, archives: bool = False, **more: Any
) -> None:
    """Add the studies that a command reads, and how to choose the image of each.

    Parameters
    ----------
    archives : bool
        A source may be the address of a DICOMweb archive, with ``--query``.
    """
    parser.add_argument(
        "source", type=path_or_address if archives else path_of_files, help=text, **more
    )
    if archives:
        add_query(parser)
    parser.add_argument(
        "--image-name",
        metavar="WORD",
        help="word in the file names of the images, where a study has several, e.g. flair",
    )


def add_query(parser: argparse.ArgumentParser) -> None:
    """Add ``--query KEY=VALUE``."""
    parser.add_argument(
        "--query",
        type=named,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="which series of a DICOMweb address, e.g. StudyDate=20260101-20261231; may be "
        "repeated",
    )


def path_or_address(text: str) -> Path | str:
    """A path, or an address as it is."""
    return text if is_address(text) else Path(text)


def path_of_files(text: str) -> Path:
    """A path, and no address."""
    if is_address(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is an address, and this command reads files; mcmiad infer and mcmiad screen "
            "read DICOMweb archives."
        )
    return Path(text)


def add_modality(parser: argparse.ArgumentParser) -> None:
    """Add ``--modality``."""
    parser.add_argument(
        "--modality",
        choices=sorted(MODALITIES),
        help="modality of the studies; a unified bundle needs it where no folder or header says it",
    )


def add_max_voxels(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-voxels``."""
    parser.add_argument(
        "--max-voxels",
        type=positive,
        metavar="N",
        help="refuse a study that is larger by its header, before it is unpacked (default: 5e8)",
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--threads``."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: one a core)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--set KEY=VALUE``."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        type=key_value,
        action="append",
        default=[],
        help=f"{text}; may be repeated",
    )


def key_value(text: str) -> tuple[str, Any]:
    """``key=value`` with a YAML value, as ``python -m monai.bundle`` reads it."""
    import yaml

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, e.g. max_epochs=50.")
    try:
        return key, ast.literal_eval(value)  # 1e-3 is a number in Python and text in YAML
    except (ValueError, SyntaxError):
        pass
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        reason = str(error).replace("\n", " ")
        raise argparse.ArgumentTypeError(f"{text!r} is not a YAML value: {reason}") from error


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1.")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0.")
    return int(text)


def numbers(text: str) -> list[int]:
    """``1,2,3`` as a list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0,1,2.") from error


def kinds_of_files(text: str) -> tuple[str, ...]:
    """``nifti,seg`` as a tuple without repetitions."""
    found, known = tuple(dict.fromkeys(text.split(","))), (NIFTI, *DICOM_KINDS)
    if unknown := sorted(set(found) - set(known)):
        raise argparse.ArgumentTypeError(f"{unknown} are no kinds of files; they are {known}.")
    return found


def named(text: str) -> tuple[str, str]:
    """``NAME=VALUE``."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE.")
    return name, value


def chosen_device(options: argparse.Namespace) -> str:
    """The device of ``--device``, or a GPU if there is one."""
    import torch

    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")
