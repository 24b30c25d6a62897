"""``mcmiad``: the short way for people. Every command is a few lines over the rooms of the package.

Nothing heavy is imported before a command runs, so that ``mcmiad --help`` answers at once.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.cli import (
    bmad,
    cohort,
    console,
    dicom,
    prompts,
    report,
    reproduce,
    results,
    robustness,
    studies,
    training,
)
from mcmiad_monai.cli.options import add_verbosity
from mcmiad_monai.errors import escaped
from mcmiad_monai.runtime.interrupts import Terminated, raised, received
from mcmiad_monai.version import __version__

#: How to go on after an interrupt.
GO_ON = {
    "infer": "go on with the same command and --continue",
    "screen": "go on with the same command",
    "evaluate": "figures are of all studies together: run the same command again",
    "reproduce": "finished runs are kept; go on with the same command",
    "stress": "finished studies are kept; go on with the same command",
    "watch": "go on with the same command",
}
#: Commands that need MONAI, whatever they are given.
MONAI_COMMANDS = frozenset({"demo", "train", "evaluate", "infer", "dicom", "watch"})


class PrintCompletion(argparse.Action):
    """Print the completion script of a shell, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> None:
        """Print it."""
        import shtab

        for action in _actions(parser):
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell=values[1]))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Arguments of a parser and of the commands below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mcmiad",
        description="Anomaly heatmaps for radiology, learned from healthy studies.",
        epilog=console.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mcmiad {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=["bash", "zsh", "tcsh"],
        help="print the completion script of a shell",
    )
    add_verbosity(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (
        studies,
        cohort,
        results,
        report,
        dicom,
        training,
        prompts,
        bmad,
        reproduce,
        robustness,
    ):
        group.add_commands(commands)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code; see `console.EXIT_CODES`.

    Parameters
    ----------
    args : sequence of str, optional
        The command line of this process by default.
    """
    options = get_parser().parse_args(args)
    with console.screen(verbose=options.verbose, quiet=options.quiet), raised():
        try:
            if args is None and options.command in MONAI_COMMANDS:
                _import_monai()
            _prepare_computing(options)
            code = options.run(options) or console.OK
            sys.stdout.flush()
            return code
        except KeyboardInterrupt as stop:
            return _interrupted(options, stop)
        except BrokenPipeError:  # what reads the output has seen enough, as in `mcmiad … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return console.OK
        except SystemExit as error:  # some studies failed
            if not isinstance(error.code, str):
                raise
            return _failed(options, error.code, console.FAILED)
        except Exception as error:
            ended = received()
            return _refused(options, error) if ended is None else _interrupted(options, ended)


def _import_monai() -> None:
    """Import MONAI without the garbage collector, which afterwards leaves those modules alone.

    MONAI imports thousands of modules that stay to the end. The collector would go through them
    again and again, and once more at exit: a third of the time of a short run
    (``benchmarks/startup.py``). Only where the process is the command's own.
    """
    gc.disable()
    try:
        importlib.import_module("monai.bundle")
    finally:
        gc.enable()
    gc.freeze()


def _interrupted(options: argparse.Namespace, stop: KeyboardInterrupt) -> int:
    """Say which signal ended a command, what is done and how to go on."""
    terminated = isinstance(stop, Terminated)
    parts = [str(part) for part in (*stop.args, GO_ON.get(options.command)) if part]
    message = "; ".join([f"interrupted by {'SIGTERM' if terminated else 'Ctrl-C'}", *parts])
    code = console.TERMINATED if terminated else console.INTERRUPTED
    return _failed(options, escaped(message), code)


def _refused(options: argparse.Namespace, error: Exception) -> int:
    """Say what cannot be used, or that the error is one of the program."""
    if isinstance(error, (ValueError, RuntimeError, OSError)):
        from mcmiad_monai.errors import unwrap

        return _failed(options, unwrap(error), console.USAGE)
    message = f"this is a bug: {type(error).__name__}: {error}"
    hint = "" if options.verbose else " (run with -v to see where)"
    return _failed(options, message + hint, console.FAILED)


def _failed(options: argparse.Namespace, message: object, code: int) -> int:
    """Print why a command failed, with its trace if that is asked for."""
    if options.verbose:
        traceback.print_exc()
    console.print_error(message)
    return code


def _prepare_computing(options: argparse.Namespace) -> None:
    """Check the device and set the threads of a command that computes."""
    if getattr(options, "threads", None):
        import torch

        torch.set_num_threads(options.threads)
    if getattr(options, "device", None):
        from mcmiad_monai.runtime.device import choose_device

        choose_device(options.device)
