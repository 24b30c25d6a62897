"""The commands for people: what they print, and errors of one line with exit code 2."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcmiad_monai.cli import main
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.modality import normal_prompts
from mcmiad_monai.networks.text_prior import TextPrior, encode_hashing

COMMANDS = ["demo", "cases", "train", "evaluate", "infer", "info", "prompts"]


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


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The workflows that commands open; none is built or run."""
    calls: list[SimpleNamespace] = []

    def record(root: Any, workflow: Any, overrides: Any, *, tracking: Any = None) -> Any:
        calls.append(SimpleNamespace(root=root, workflow=workflow, overrides=overrides))
        calls[-1].tracking = tracking
        return SimpleNamespace(run=lambda: None)

    monkeypatch.setattr("mcmiad_monai.bundle.open_workflow", record)
    return calls


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {name} +\w", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: mcmiad {command}")
    if command in ("train", "infer", "evaluate"):
        assert "--set KEY=VALUE" in text


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\n"
        "from mcmiad_monai.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: print(*{'torch', 'monai', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == ""


def test_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in usage_error(capsys)
    assert "invalid choice: 'trian'" in usage_error(capsys, "trian")


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


def test_source_that_does_not_exist_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "brains").mkdir()
    message = refused(capsys, "cases", str(tmp_path / "brain"))
    assert "does not exist" in message
    assert "brains/" in message


def test_missing_split_is_one_line(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "cases", str(cohort / "train"), "--split", "val")
    assert "no validation split" in message


def test_unknown_split_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'dev'" in usage_error(capsys, "cases", ".", "--split", "dev")


def test_verbose_shows_where_an_error_came_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        main(["-v", "cases", str(tmp_path / "none")])


def test_info_counts_parameters_that_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--encoder", "resnet10t"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["part", "parameters", "trainable"]
    cells = [line.replace(",", "").split() for line in lines]
    rows = {name: [int(n) for n in counts] for name, *counts in cells}
    encoder, head, total = (rows[part] for part in ("encoder", "head", "total"))
    assert encoder[0] + head[0] == total[0]
    assert encoder[1] == 0  # the encoder is frozen
    assert head[1] == total[1] == head[0]
    assert all(abs(flops - 2 * macs) <= 1 for _, _, flops, macs in rows.values())
    assert all(n > 0 for n in encoder[2:] + head)


def test_unknown_encoder_is_one_line_with_similar_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refused(capsys, "info", "--encoder", "tf_efficientnet_b44")
    assert "does not know the model 'tf_efficientnet_b44'" in message
    assert "'tf_efficientnet_b4'" in message


def test_model_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no packaged model" in refused(capsys, "info", "--model", str(tmp_path / "m.pt"))


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
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_unknown_text_encoder_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(
        capsys, "prompts", "encode", "--encoder", "clip", "--out", str(tmp_path / "p")
    )
    assert "no text prior clip" in message
    assert not list(tmp_path.iterdir())


def test_message_about_a_missing_prior_names_a_command_that_exists(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refused(capsys, "prompts", "encode", "--encoder", "clip")
    assert re.findall(r"`mcmiad ([\w-]+)", message)[0] in COMMANDS


@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_folder_that_is_no_bundle_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    bundle, out = str(tmp_path / "none"), str(tmp_path / "out")
    message = refused(capsys, command, str(tmp_path), "--bundle", bundle, "--out", out)
    assert "is no bundle of this project" in message


def test_training_an_unknown_bundle_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    message = refused(capsys, "train", str(tmp_path), "--bundle", "brain", "--out", str(out))
    assert "choose one of ['brain_mri_anomaly', " in message
    assert not out.exists()


def test_training_into_a_folder_of_something_else_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").touch()
    message = refused(capsys, "train", str(tmp_path), "--out", str(tmp_path))
    assert "not empty and not a bundle" in message


@pytest.mark.parametrize("text", ["max_epochs", "=5", ""])
def test_override_without_key_or_value_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    message = usage_error(capsys, "infer", "x", "--bundle", "b", "--out", "o", "--set", text)
    assert f"{text!r} is not KEY=VALUE, e.g. max_epochs=50." in message


def test_override_that_is_no_yaml_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    message = usage_error(capsys, "infer", "x", "--bundle", "b", "--out", "o", "--set", "a=[1")
    assert "a=[1" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=5", 5),
        ("learning_rate=0.001", 0.001),
        ("learning_rate=1e-3", 0.001),
        ("slice_range=[0.3, 0.8]", [0.3, 0.8]),
        ("progress=false", False),
        ("resume=null", None),
        ("dataset_dir=/a=b", "/a=b"),
        ("train#trainer#amp=true", True),
        ("device=$torch.device('cpu')", "$torch.device('cpu')"),
    ],
)
def test_override_is_read_as_a_value(
    opened: list[SimpleNamespace], text: str, expected: Any
) -> None:
    assert main(["infer", "x", "--bundle", "b", "--out", "o", "--set", text]) == 0
    found = opened[0].overrides[text.partition("=")[0]]
    assert found == expected
    assert type(found) is type(expected)


def test_infer_passes_absolute_paths_and_every_override(
    opened: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the bundle resolves relative paths from elsewhere
    options = ["--bundle", "b", "--out", "heat", "--set", "batch_size=2", "--set", "split=val"]
    assert main(["infer", "studies", *options]) == 0
    (call,) = opened
    assert (call.root, call.workflow) == (Path("b"), "inference")
    assert call.overrides == {
        "dataset_dir": str(tmp_path / "studies"),
        "output_dir": str(tmp_path / "heat"),
        "batch_size": 2,
        "split": "val",
    }


def test_train_passes_only_what_was_given(opened: list[SimpleNamespace], tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert main(["train", str(tmp_path), "--out", str(out), "--epochs", "3"]) == 0
    assert opened[0].overrides == {"dataset_dir": str(tmp_path), "max_epochs": 3}
    assert opened[0].tracking is None
    options = ["--resume", "--weights", "random", "--text-prior", "hashing", "--tracking", "mlflow"]
    assert main(["train", str(tmp_path), "--out", str(out), *options]) == 0
    assert opened[1].overrides == {
        "dataset_dir": str(tmp_path),
        "weights": "random",
        "text_prior": "hashing",
        "resume": str(out / "models" / "last.pt"),
    }
    assert opened[1].tracking == "mlflow"


def test_named_override_wins_over_its_short_option(
    opened: list[SimpleNamespace], tmp_path: Path
) -> None:
    out = str(tmp_path / "mine")
    options = ["--epochs", "3", "--set", "max_epochs=7"]
    assert main(["train", str(tmp_path), "--out", out, *options]) == 0
    assert opened[0].overrides["max_epochs"] == 7


def test_export_of_what_is_no_model_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "none.pt"), str(tmp_path / "model.onnx")]) == 2
    assert "there is no packaged model" in capsys.readouterr().err


def test_app_is_laid_out_with_all_bundles_or_the_named_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label-app", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "all" / "model").iterdir())) == 4
    assert "monailabel start_server --app" in capsys.readouterr().out
    named = ["--bundle", "liver_ct_anomaly"]
    assert main(["label-app", str(tmp_path / "one"), *named]) == 0
    assert [p.name for p in (tmp_path / "one" / "model").iterdir()] == ["liver_ct_anomaly"]
    assert main(["label-app", str(tmp_path / "two"), "--bundle", str(tmp_path)]) == 2


def test_modality_of_studies_is_one_of_those_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["infer", "x", "--bundle", "b", "--out", "o", "--modality", "knee"])
    assert "liver_ct" in capsys.readouterr().err
