"""Commands that fail, run in this process."""

from __future__ import annotations

import re

import pytest

from mcmiad_monai.cli.parser import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails; its message, which is all that it prints."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"mcmiad: [^\n]+\n", printed.err)
    return printed.err


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that is written wrongly; the message of the parser."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err
