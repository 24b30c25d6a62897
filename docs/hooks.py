"""What MkDocs runs before it builds: the package for mkdocstrings, the command line as a page."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "build" / "docs-package" / "mcmiad_monai"
#: In docs/reference/cli.md, where the commands are put.
PLACE = "<!-- commands -->"


def on_startup(**_: Any) -> None:
    """Copy the package as it is installed: `transforms/` is a part of it (setup.cfg)."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(ROOT / "mcmiad_monai", PACKAGE)
    shutil.copytree(ROOT / "transforms", PACKAGE / "transforms")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of every command where a page asks for it."""
    return markdown.replace(PLACE, command_sections()) if PLACE in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Show references of docstrings (``:func:`~package.name```) by their last name."""
    return re.sub(r":\w+:<code>~?(?:[\w.]+\.)?(\w+)</code>", r"<code>\1</code>", html)


def command_sections() -> str:
    """A section a command, each with what ``mcmiad COMMAND --help`` prints."""
    from mcmiad_monai.cli.parser import get_parser

    os.environ["COLUMNS"] = "80"
    parts = [
        f"## {parser.prog}\n\n```text\n{parser.format_help()}```"
        for parser in parsers(get_parser())
    ]
    return "\n\n".join(parts)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from parsers(below)
