"""The documentation: it builds, and its commands, code and paths are those of the project."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai.cli.parser import get_parser, main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: A folder or file of the repository in a page.
PATH = re.compile(
    r"`((?:mcmiad_monai|transforms|bundles|benchmarks|notebooks|networks|docs)/[\w./]*)`"
)


def names(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_code_and_paths_of_a_page_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["mcmiad"] and "--print-completion" not in words:
                get_parser().parse_args(words[1:])  # exits where the command is not known
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.dump(node)
    for path in PATH.findall(text):
        assert (ROOT / path).exists() or (ROOT / "mcmiad_monai" / path).exists(), path


def test_command_line_page_has_the_help_of_every_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    shown = hooks["on_page_markdown"](page)
    titles = re.findall(r"^## (mcmiad.*)$", shown, re.M)
    assert {"mcmiad", "mcmiad infer", "mcmiad bmad prepare", "mcmiad train"} <= set(titles)
    for title in titles:
        with contextlib.suppress(SystemExit):
            main([*title.split()[1:], "--help"])
        assert f"## {title}\n\n```text\n{capsys.readouterr().out}```" in shown


def test_references_of_docstrings_are_shown_by_their_names() -> None:
    hooks: dict[str, Any] = runpy.run_path(str(DOCS / "hooks.py"))
    html = hooks["on_page_content"]("See :func:<code>~package.room.build</code>.")
    assert html == "See <code>build</code>."


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("MkDocs is not installed; it comes with the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        assert (tmp_path / page.relative_to(DOCS).with_suffix(".html")).is_file()
