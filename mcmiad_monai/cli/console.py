"""What a command shows: messages on standard error, results on standard output, exit codes."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from mcmiad_monai.errors import escaped
from mcmiad_monai.files.formats import is_address

logger = logging.getLogger(__name__)

OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

EXIT_CODES = """\
exit codes:
  0    done
  1    some studies failed (all others are done), files of a bundle differ, or an error of the
       program itself
  2    wrong usage, or an input that cannot be used
  130  interrupted (Ctrl-C)
  143  interrupted (SIGTERM, as a scheduler sends it)"""

#: Libraries that log what the command itself reports: summaries, and errors that it prints.
REPORTED = ("monai", "ignite")


class Screen(logging.Handler):
    """Messages on standard error, above a progress bar where there is one.

    Parameters
    ----------
    verbose, quiet : bool
        Show messages of all libraries with their names; or errors only.
    """

    def __init__(self, *, verbose: bool = False, quiet: bool = False) -> None:
        super().__init__()
        self.verbose, self.quiet = verbose, quiet

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is shown."""
        if self.verbose:
            return True
        library = record.name.partition(".")[0]
        if library in REPORTED:
            return False
        wanted = logging.INFO if library == "mcmiad_monai" else logging.WARNING
        return record.levelno >= (logging.ERROR if self.quiet else wanted)

    def format(self, record: logging.LogRecord) -> str:
        """``message``, ``warning: message``, or all of it if verbose."""
        text = super().format(_one_line(record))
        level = record.levelname.lower()
        if self.verbose:
            return f"{level} {record.name}: {text}"
        return text if record.levelno < logging.WARNING else f"{level}: {text}"

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        line = self.format(record)
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


def _one_line(record: logging.LogRecord) -> logging.LogRecord:
    """A record whose texts, which may be of file names and headers, forge no line."""
    if not isinstance(record.args, tuple) or record.msg == "%s":  # "%s" is a message of our own
        return record
    shown = copy(record)
    shown.args = tuple(
        escaped(str(part)) if isinstance(part, (str, Path)) else part for part in record.args
    )
    return shown


@contextmanager
def screen(*, verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """Show messages of this process on a `Screen`; afterwards all is as it was."""
    root, ours = logging.getLogger(), logging.getLogger("mcmiad_monai")
    handler, levels = Screen(verbose=verbose, quiet=quiet), (root.level, ours.level)
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    ours.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        with warnings.catch_warnings():
            if not verbose:  # what matters of them is logged as well
                warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


def report_not_read(sources: Sequence[Path | str], image_name: str | None) -> None:
    """Log which files of the sources were not read, and why; hidden ones are left out."""
    from mcmiad_monai.data.cases.explain import not_read

    files = [source for source in sources if not is_address(source)]
    try:
        told = not_read(files, image_name=image_name)
    except ValueError as error:  # of a split that the command did not look at
        told = f"which other files were not read is not known: {error}"
    if told:
        logger.info("%s", escaped(told))


def print_json(result: Any) -> None:
    """Print a result as JSON; what JSON has no type for becomes text."""
    print(json.dumps(result, indent=1, default=str))


def print_error(message: object) -> None:
    """Print the one message of a failed command."""
    lines = f"mcmiad: {message}".split("\n")  # of our own; names in them were escaped
    print("\n".join(escaped(line) for line in lines), file=sys.stderr)
