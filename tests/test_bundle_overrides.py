"""Copies of bundles, and overrides that would otherwise be ignored without a word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import yaml
from monai.bundle import ConfigParser

from mcmiad_monai.bundle import (
    copy_bundle,
    locate,
    open_workflow,
    refuse_unknown_overrides,
    shipped_bundles,
)
from mcmiad_monai.errors import BundleError
from mcmiad_monai.overrides import (
    WORDS,
    check_overrides,
    command_line_options,
    config_keys,
    literal,
    place_method_options,
)

NAME = "brain_mri_anomaly"
# the program's name as Python puts it into sys.argv for `python -m monai.bundle`
PROGRAM = "/env/site-packages/monai/bundle/__main__.py"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    content = {
        "batch_size": 4,
        "max_epochs": 3,
        "output_dir": "out",
        "train": {"lr": 0.1},
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--batch_size", "4"], {"batch_size": "4"}),
        (["run", "--batch_size=4"], {"batch_size": "4"}),
        (["run", "-batch_size", "4"], {"batch_size": "4"}),
        (["run", "--batch-size", "4"], {"batch_size": "4"}),
        (["--train#lr", "0.1"], {"train#lr": "0.1"}),
        (["--train::my-lr=0.1"], {"train::my-lr": "0.1"}),  # an id may hold a hyphen
        (["--shift", "-1", "--by", "-.5"], {"shift": "-1", "by": "-.5"}),
        (["--path", "a=b"], {"path": "a=b"}),
        (["--path=a=b"], {"path": "a=b"}),
        (["--resume", "--seed", "3"], {"resume": "", "seed": "3"}),
        (["run"], {}),
        ([], {}),
    ],
)
def test_options_are_read_as_fire_reads_them(
    arguments: list[str], expected: dict[str, Any]
) -> None:
    assert command_line_options(arguments) == expected


def test_known_overrides_and_options_of_the_runner_are_taken(config: Path, tmp_path: Path) -> None:
    runner = ["config_file", "meta_file", "logging_file", "run_id", "args_file", "tracking"]
    check_overrides([*runner, "batch_size", "train#trainer#max_epochs", "train::lr"], [config])
    other = tmp_path / "evaluate.json"
    other.write_text(json.dumps({"evaluate": {}}))
    check_overrides(["evaluate", "batch_size"], [config, other])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["batchsize", "zzz"], r"--batchsize \(did you mean --batch_size\?\); --zzz\. "),
        (
            ["zzz", "max_epochs"],
            r"--zzz\. .*has: batch_size, max_epochs, output_dir, train.",
        ),
        (["trian#lr", "epochs::x", "lr"], r"--epochs::x .*; --lr; --trian#lr \(did"),
        (["trian#optimizer#lr"], r"--trian#optimizer#lr \(did you mean --train\?\)"),
        (["trian::optimizer::lr"], r"--trian::optimizer::lr \(did you mean --train\?\)"),
        (["evaluate"], "--evaluate"),
    ],
)
def test_unknown_overrides_are_refused_with_their_close_matches(
    config: Path, given: list[str], told: str
) -> None:
    with pytest.raises(BundleError, match=told):
        check_overrides(given, [config])


def test_options_of_the_method_are_placed_and_hinted_at(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("method: {_target_: preset}\nbatch_size: 4\n")
    given = {"jitter_scale": 20, "batch_size": 2, "method#dim": 64, "trian": 1}
    placed = place_method_options(given, config_keys([path]))
    assert list(placed) == ["method#jitter_scale", "batch_size", "method#dim", "trian"]
    # MONAI's command line does not place them
    with pytest.raises(BundleError, match=r"jitter_scale \(did you mean --method#jitter_scale\?\)"):
        refuse_unknown_overrides(argv("--config_file", str(path), "--jitter_scale", "20"))
    with pytest.raises(BundleError, match="did you mean --method#standardize_features"):
        check_overrides(["standardise_features"], [path])
    path.write_text("batch_size: 4\n")  # which trains nothing
    assert place_method_options(given, config_keys([path])) == given


def argv(*options: str, program: str = PROGRAM) -> list[str]:
    return [program, "run", *options]


@pytest.mark.parametrize("form", ["{0}", "[{0}]", "['{0}']", "{0},{1}", "['{0}', '{1}']"])
def test_command_line_with_a_typing_error_is_refused(
    config: Path, tmp_path: Path, form: str
) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("extra: 1\n")
    files = form.format(config, second)
    refuse_unknown_overrides(argv("--config_file", files, "--batch_size", "2"))
    with pytest.raises(BundleError, match=r"--max_epoch \(did you mean --max_epochs\?\)"):
        refuse_unknown_overrides(argv(f"--config_file={files}", "--max-epoch", "2"))
    if "{1}" in form:
        refuse_unknown_overrides(argv("--config_file", files, "--extra", "2"))


def test_overrides_in_an_arguments_file_are_checked_too(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "args.yaml"
    file.write_text(yaml.safe_dump({"config_file": str(config), "batchsize": 2}))
    with pytest.raises(BundleError, match=r"--batchsize \(did you mean --batch_size\?\)"):
        refuse_unknown_overrides(argv("--args_file", str(file)))
    for value in (2, False):  # which is no text there
        file.write_text(yaml.safe_dump({"config_file": [str(config)], "batch_size": value}))
        refuse_unknown_overrides(argv("--args_file", str(file)))


@pytest.mark.parametrize(
    ("word", "meant"), [("false", "False"), ("TRUE", "True"), ("null", "None"), ("none", "None")]
)
def test_switch_that_would_arrive_as_text_is_refused(config: Path, word: str, meant: str) -> None:
    options = ["--config_file", str(config), "--batch_size"]
    refuse_unknown_overrides(argv(*options, meant))
    with pytest.raises(BundleError, match=f"--batch_size {word} .*: --batch_size {meant}"):
        refuse_unknown_overrides(argv(*options, word))


def test_pages_write_switches_as_the_command_line_takes_them() -> None:
    root = Path(__file__).parents[1]
    pages = [root / "README.md", *root.glob("bundles/*/docs/README.md")]
    given = [o for p in pages for o in re.findall(r"--(\w+) (\w+)", p.read_text("utf-8"))]
    assert ("pictures", "False") in given
    assert [(name, word) for name, word in given if WORDS.get(word.lower(), word) != word] == []


def test_other_programs_are_left_alone_and_that_of_the_process_is_the_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ["--config_file", str(config), "--batchsize", "2"]
    refuse_unknown_overrides(argv(*wrong, program="/env/bin/pytest"))
    refuse_unknown_overrides([])
    refuse_unknown_overrides(argv("--batchsize", "2"))  # MONAI says itself that a file is missing
    monkeypatch.setattr("sys.argv", argv(*wrong))
    with pytest.raises(BundleError, match="batchsize"):
        refuse_unknown_overrides()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle in a folder with a blank in its name."""
    root = (tmp_path / "my bundles" / "brain").resolve()
    (root / "configs").mkdir(parents=True)
    for name in ("train", "multi_gpu_train"):
        (root / "configs" / f"{name}.yaml").write_text("max_epochs: 1\n")
    return root


@pytest.fixture
def located(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a configuration with ``bundle_root: .`` finds under a command line."""

    def get(*options: str, root: str = ".", program: str = PROGRAM) -> str:
        monkeypatch.setattr("sys.argv", argv(*options, program=program))
        return locate(root, "models", "model.pt")

    return get


@pytest.mark.parametrize("form", ["{0}", "[{0}]", "['{0}']", "['{0}','{1}']", "{0},{1}"])
@pytest.mark.parametrize("spelled", ["absolute", "relative"])
def test_paths_are_in_the_bundle_of_the_configuration_from_any_folder(
    bundle: Path, located: Any, form: str, spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (bundle.parent, bundle, bundle.parent.parent):
        monkeypatch.chdir(folder)
        configs = bundle / "configs"
        start = configs if spelled == "absolute" else configs.relative_to(folder)
        files = form.format(start / "train.yaml", start / "multi_gpu_train.yaml")
        assert located("--config_file", files) == f"{bundle}/models/model.pt"
        assert located(f"--config-file={files}", "--seed", "3") == f"{bundle}/models/model.pt"
    monkeypatch.chdir(bundle / "configs")
    for name in ("train.yaml", "./train.yaml", "../configs/train.yaml"):
        assert located("--config_file", name) == f"{bundle}/models/model.pt"


def test_paths_of_an_arguments_file_are_in_the_bundle_of_its_configuration(
    bundle: Path, located: Any, tmp_path: Path
) -> None:
    file = tmp_path / "args.yaml"
    file.write_text(yaml.safe_dump({"config_file": str(bundle / "configs" / "train.yaml")}))
    assert located("--args_file", str(file)) == f"{bundle}/models/model.pt"


def test_bundle_root_of_the_command_line_is_taken_as_it_is(bundle: Path, located: Any) -> None:
    options = ["--config_file", str(bundle / "configs" / "train.yaml"), "--bundle_root", "other"]
    assert located(*options, root="other") == "other/models/model.pt"
    assert located(*options[:2], root="/absolute") == "/absolute/models/model.pt"


def test_paths_are_in_the_working_directory_where_no_bundle_is_named(
    config: Path, bundle: Path, located: Any
) -> None:
    assert located("--config_file", str(config)) == "models/model.pt"  # in no folder "configs"
    assert located("--seed", "3") == "models/model.pt"
    options = ["--config_file", str(bundle / "configs" / "train.yaml")]
    assert located(*options, program="/env/bin/pytest") == "models/model.pt"


@pytest.mark.parametrize("workflow", ["train", "inference"])
@pytest.mark.parametrize("name", shipped_bundles())
def test_shipped_bundles_find_their_files(
    name: str, workflow: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = shipped_bundles()[name] / "configs" / f"{workflow}.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", argv("--config_file", str(path)))
    config = read(path)
    assert config["bundle_root"] == "."
    parser = ConfigParser(config)
    assert parser.get_parsed_content("output_dir") == str(path.resolve().parents[1] / "eval")


def test_program_name_is_the_one_that_monai_has() -> None:
    entry = Path(monai.bundle.__file__).with_name("__main__.py")
    assert entry.is_file()
    assert entry.parts[-3:] == Path(PROGRAM).parts[-3:]


@pytest.mark.parametrize("workflow", ["train", "evaluate", "inference", "multi_gpu_train"])
def test_shipped_configurations_check_their_command_line(workflow: str) -> None:
    path = shipped_bundles()[NAME] / "configs" / f"{workflow}.yaml"
    assert any("refuse_unknown_overrides" in step for step in read(path)["initialize"])


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def test_copy_is_a_whole_bundle(tmp_path: Path) -> None:
    source = shipped_bundles()[NAME]
    for root in (tmp_path, tmp_path / "deep" / "mine"):  # an empty folder, and a new one
        assert copy_bundle(NAME, root) == root
        for name in ("configs/train.yaml", "configs/inference.yaml", "configs/metadata.json"):
            assert (root / name).read_bytes() == (source / name).read_bytes()
    assert not list(root.rglob("__pycache__"))
    assert not list(root.rglob("*.pt"))


def test_second_copy_keeps_models_and_renews_configurations(tmp_path: Path) -> None:
    root = copy_bundle(NAME, tmp_path / "mine")
    original = (root / "configs" / "train.yaml").read_bytes()
    kept = {"models/model.pt": b"model", "models/last.pt": b"last", "eval/scores.json": b"{}"}
    for name, content in kept.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    (root / "configs" / "train.yaml").write_text("max_epochs: 1\n")
    assert copy_bundle(NAME, root) == root
    assert {name: (root / name).read_bytes() for name in kept} == kept
    assert (root / "configs" / "train.yaml").read_bytes() == original


def test_python_overrides_are_checked_before_anything_is_built(tmp_path: Path) -> None:
    root = copy_bundle(NAME, tmp_path / "mine")
    with pytest.raises(BundleError, match=r"--epochs_max \(did you mean --max_epochs"):
        open_workflow(root, "train", {"epochs_max": 1})


@pytest.mark.parametrize("text", ["/data/case#3", "it's #1", "C:\\new#2", "##"])
def test_a_text_with_a_hash_reaches_the_configuration_as_it_is(text: str) -> None:
    parser = ConfigParser({"dataset_dir": ".", "inside": "$@dataset_dir + '/a'"})
    parser["dataset_dir"] = literal(text)
    assert parser.get_parsed_content("inside") == f"{text}/a"


@pytest.mark.parametrize("value", ["$1 # one", "@network_def#x", "%a.yaml#b", "plain", 3, None])
def test_expressions_and_texts_without_a_hash_stay(value: Any) -> None:
    assert literal(value) is value


def test_a_bundle_in_a_folder_with_a_hash_finds_its_files(tmp_path: Path) -> None:
    root = copy_bundle("brain_mri_anomaly", tmp_path / "try#1")
    (tmp_path / "case#3").mkdir()
    given = {"dataset_dir": str(tmp_path / "case#3"), "logging_file": False}
    parser = open_workflow(root, "inference", given).parser
    assert parser.get_parsed_content("model_path") == str(root / "models" / "model.pt")
    assert parser.get_parsed_content("dataset_dir") == str(tmp_path / "case#3")


def test_a_path_with_a_hash_on_the_command_line_of_monai_is_refused(config: Path) -> None:
    options = ("--config_file", str(config), "--output_dir", "/data/case#3")
    with pytest.raises(BundleError, match=r"has a #.*\$'/data/case\\x233'"):
        refuse_unknown_overrides(argv(*options))
