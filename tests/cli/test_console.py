"""What a command prints: names and headers forge no line and move no cursor."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mcmiad_monai.cli.console import print_error, screen
from mcmiad_monai.cli.parser import main
from mcmiad_monai.errors import root_message

HOSTILE = "a\n12 studies done, 0 failed\x1b[2J\u202e"
SHOWN = "a\\n12 studies done, 0 failed\\x1b[2J\\u202e"


@pytest.mark.parametrize("name", [HOSTILE, Path(HOSTILE)])
def test_a_log_line_of_a_hostile_name_is_one_line(
    capsys: pytest.CaptureFixture[str], name: str | Path
) -> None:
    with screen():
        logging.getLogger("mcmiad_monai.x").error("study %s failed: %s", name, 3)
    assert capsys.readouterr().err == f"error: study {SHOWN} failed: 3\n"


def test_a_message_about_a_hostile_name_is_one_line() -> None:
    assert root_message(ValueError(f"{HOSTILE} is bad")) == f"ValueError: {SHOWN} is bad"


def test_an_error_keeps_its_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("2 failed:\n  a: \x1b[2J\n  b: no")
    assert capsys.readouterr().err == "mcmiad: 2 failed:\n  a: \\x1b[2J\n  b: no\n"


def test_listed_studies_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{HOSTILE}.nii").touch()
    assert main(["cases", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"a_12 studies done, 0 failed_[2J_\t{tmp_path}/{SHOWN}.nii\t-"
