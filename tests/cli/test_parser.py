"""The command line: options, messages, exit codes. Nothing is computed here."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from cli_errors import refused, usage_error

from mcmiad_monai.cli.parser import main
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.text_prior import TextPrior, encode_hashing
from mcmiad_monai.runtime.interrupts import Terminated
from mcmiad_monai.version import __version__

COMMANDS = ["demo", "cases", "train", "evaluate", "infer", "info", "prompts"]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the parser prints before it exits without an error."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_command_and_version_is_that_of_the_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(capsys, "--help")
    assert all(re.search(rf"^    {name} +\w", text, re.MULTILINE) for name in COMMANDS)
    assert shown(capsys, "--version") == f"mcmiad {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = shown(capsys, command, "--help")
    assert text.startswith(f"usage: mcmiad {command}")
    assert ("--set KEY=VALUE" in text) == (command in ("train", "infer", "evaluate"))


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\n"
        "from mcmiad_monai.cli.parser import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: print(*{'torch', 'monai', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_script_knows_commands_and_options(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    script = shown(capsys, "--print-completion", shell)
    assert all(word in script for word in ("label-app", "infer", "verbose"))


INFER = ["infer", "x", "--bundle", "b", "--out", "o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["cases", ".", "--split", "dev"], "invalid choice: 'dev'"),
        ([*INFER, "--threads", "0"], "'0' is not a whole number from 1"),
        ([*INFER, "--modality", "knee"], "liver_ct"),
        ([*INFER, "--set", "max_epochs"], "'max_epochs' is not KEY=VALUE, e.g. max_epochs=50."),
        ([*INFER, "--set", "=5"], "'=5' is not KEY=VALUE"),
        ([*INFER, "--set", ""], "'' is not KEY=VALUE"),
        ([*INFER, "--set", "a=[1"], "a=[1"),
        (["train", "x", "--out", "o", "--resume", "--overwrite"], "not allowed with"),
        (["reproduce", "--out", "x", "--seeds", "a,b"], "is not a list such as 0,1,2"),
        (["reproduce", "--out", "x", "--own", "brain_mri"], "is not NAME=VALUE"),
    ],
)
def test_what_the_parser_does_not_take_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in usage_error(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ("cases {tmp}/brain", ["does not exist", "brains/"]),
        ("cases {cohort}/train --split val", ["no validation split"]),
        (
            "infer x --bundle b --out o --device gpu",
            ["device 'gpu' is not known; choose cpu, cuda"],
        ),
        ("infer x --bundle b --out o --device cuda:99", ["device cuda:99 is not there"]),
        ("infer {tmp} --bundle {tmp}/none --out {tmp}/o", ["has no trained model"]),
        ("evaluate {tmp} --bundle {tmp}/none --out {tmp}/o", ["has no trained model"]),
        ("infer x --bundle b --out o --set network#heads=2", ["network#heads: no such setting"]),
        ("evaluate x --bundle b --out o --set seed=2", ["seed: no such setting. There are engine"]),
        ("train {tmp} --bundle brain --out {tmp}/o", ["choose one of ['brain_mri_anomaly', "]),
        ("train {tmp} --out {tmp}", ["not empty and not a bundle"]),
        ("info --encoder tf_efficientnet_b44", ["the model 'tf_efficientnet_b44'", "b4'"]),
        ("info --model {tmp}/m.pt", ["no packaged model"]),
        ("export {tmp}/none.pt {tmp}/model.onnx", ["there is no packaged model"]),
        ("prompts encode --encoder clip --out {tmp}/p", ["no text prior clip", "`mcmiad prompts"]),
        ("label-app {tmp}/app --bundle {tmp}", ["bundle"]),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    tmp_path: Path,
    cohort: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    messages: list[str],
) -> None:
    (tmp_path / "brains").mkdir()
    message = refused(capsys, *arguments.format(tmp=tmp_path, cohort=cohort).split())
    assert [part for part in messages if part not in message] == []
    assert list(tmp_path.rglob("*")) == [tmp_path / "brains"]


@pytest.mark.parametrize("split", ["train", "val", "test", "all"])
def test_cases_lists_name_image_and_mask(
    cohort: Path, capsys: pytest.CaptureFixture[str], split: Any
) -> None:
    assert main(["cases", str(cohort), "--split", split]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        [case["case"], case["image"], case["label"] or "-"] for case in find_cases(cohort, split)
    ]
    assert len(lines) == {"train": 4, "val": 4, "test": 4, "all": 12}[split]
    if split == "train":
        assert {line[2] for line in lines} == {"-"}


@pytest.mark.parametrize("place", [0, 3])
def test_verbose_shows_where_an_error_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    arguments = ["cases", str(tmp_path / "none"), "--explain"]
    assert main([*arguments[:place], "-v", *arguments[place:]]) == 2
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert message.splitlines()[-1].startswith("mcmiad: ")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "mcmiad: interrupted by Ctrl-C\n"),
        (Terminated("2 done"), 143, "mcmiad: interrupted by SIGTERM; 2 done\n"),
        (SystemExit("1 of 3 studies failed"), 1, "mcmiad: 1 of 3 studies failed\n"),
        (ValueError("not a study"), 2, "mcmiad: not a study\n"),
        (OSError("disk full"), 2, "mcmiad: disk full\n"),
        (
            TypeError("no len"),
            1,
            "mcmiad: this is a bug: TypeError: no len (run with -v to see where)\n",
        ),
    ],
)
def test_failure_is_one_message_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("mcmiad_monai.data.cases.find.find_cases", fail)
    assert main(["cases", "x"]) == code
    assert capsys.readouterr() == ("", message)
    assert re.search(rf"^  {code} +\w", shown(capsys, "--help"), re.MULTILINE)


def test_messages_go_to_stderr_and_as_loud_as_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(*_: Any, **__: Any) -> list[Any]:
        ours = logging.getLogger("mcmiad_monai.room")
        ours.info("resumed")
        ours.warning("random weights")
        ours.error("study a failed")
        logging.getLogger("ignite.engine").error("terminating")
        logging.getLogger("timm").info("loading")
        warnings.warn("any `_target_` value", stacklevel=1)
        return []

    monkeypatch.setattr("mcmiad_monai.data.cases.find.find_cases", talk)
    monkeypatch.setattr(logging.root, "handlers", [])  # those that a bundle's logging.conf adds

    def heard(*options: str) -> list[str]:
        assert main(["cases", "x", *options]) == 0
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err.splitlines()

    usual = ["resumed", "warning: random weights", "error: study a failed"]
    assert heard() == usual
    assert heard("-q") == usual[2:]
    with pytest.warns(UserWarning, match="_target_"):
        verbose = heard("-v")
    assert {"error ignite.engine: terminating", "info timm: loading"} <= set(verbose)


@pytest.mark.usefixtures("opened")
def test_threads_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    assert main(["train", "x", "--out", str(tmp_path / "o"), "--threads", "3"]) == 0
    assert threads == [3]


def test_cases_explain_what_was_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("p_t1.nii.gz", "p_flair.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    arguments = ["cases", str(tmp_path), "--image-name", "flair"]
    assert main([*arguments, "--json"]) == 0
    (case,) = json.loads(capsys.readouterr().out)
    assert case["case"] == "p_flair"
    assert main([*arguments, "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "1 studies found, 2 files not read",
        f"{tmp_path / 'notes.txt'}\tno image: neither a known suffix nor DICOM",
        f"{tmp_path / 'p_t1.nii.gz'}\tits name lacks the word flair",
    ]
    assert main([*arguments, "--explain", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["not_read"]) == 2


def test_info_counts_parameters_that_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--encoder", "resnet10t"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["part", "parameters", "trainable"]
    cells = [line.replace(",", "").split() for line in lines]
    rows = {name: [int(n) for n in counts] for name, *counts in cells}
    encoder, head, memory, total = (
        rows[part] for part in ("encoder", "head", "memory-cosine", "inference")
    )
    assert encoder[0] + head[0] + memory[0] == total[0]
    assert encoder[1] == memory[1] == 0  # neither is trained
    assert head[1] == total[1] == head[0]
    assert all(abs(flops - 2 * macs) <= 1 for _, _, flops, macs in rows.values())
    assert all(n > 0 for n in encoder[2:] + head + memory[2:])


def test_prompts_are_shown_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "show"]) == 0
    assert tuple(capsys.readouterr().out.splitlines()) == normal_prompts()


def test_encoded_prompts_are_a_prior_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "prior.safetensors"
    assert main(["prompts", "encode", "--encoder", "hashing", "--out", str(path)]) == 0
    told = capsys.readouterr().out
    assert str(path) in told
    assert "15 prompts" in told
    assert "not CLIP" in told
    prior = TextPrior.load(path)
    assert prior.prompts == normal_prompts()
    assert prior.provenance == encode_hashing(normal_prompts()).provenance
    card = path.with_suffix(".md")
    assert set(path.parent.iterdir()) == {path, card}
    assert prior.prompts[0] in card.read_text()
