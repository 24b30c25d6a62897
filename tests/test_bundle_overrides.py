from __future__ import annotations

from pathlib import Path

import pytest

from mcmiad_monai.bundle import (
    BundleError,
    command_line_options,
    copy_bundle,
    open_workflow,
    refuse_unknown_overrides,
    shipped_bundles,
    unknown_overrides,
)

PROGRAM = "/somewhere/monai/bundle/__main__.py"


def test_command_line_is_read_as_fire_reads_it() -> None:
    line = ["run", "--a", "1", "--b=2", "--c-d", "x", "-e", "5", "--lr", "-0.5", "--n#m", "3"]
    assert command_line_options(line) == {
        "a": "1",
        "b": "2",
        "c_d": "x",
        "e": "5",
        "lr": "-0.5",
        "n#m": "3",
    }


def test_nested_overrides_go_by_their_first_part() -> None:
    known = {"train", "max_epochs"}
    given = ["train#trainer#max_epochs", "train::x", "max_epochs", "trian#x", "config_file"]
    assert unknown_overrides(given, known) == ["trian#x"]


@pytest.mark.parametrize("form", ["{}", "['{}']", "{},{}"])
def test_unknown_option_of_a_run_is_refused_with_a_hint(form: str) -> None:
    config = str(shipped_bundles()["brain_mri_anomaly"] / "configs" / "train.yaml")
    line = [PROGRAM, "run", "--config_file", form.format(config, config)]
    refuse_unknown_overrides([*line, "--max_epochs", "3"])
    with pytest.raises(BundleError, match="did you mean --max_epochs"):
        refuse_unknown_overrides([*line, "--max_epoch", "3"])


def test_args_file_is_looked_into(tmp_path: Path) -> None:
    config = shipped_bundles()["brain_mri_anomaly"] / "configs" / "train.yaml"
    arguments = tmp_path / "args.yaml"
    arguments.write_text(f"config_file: {config}\nlerning_rate: 1\n")
    with pytest.raises(BundleError, match="learning_rate"):
        refuse_unknown_overrides([PROGRAM, "run", "--args_file", str(arguments)])


def test_other_programs_are_left_alone() -> None:
    refuse_unknown_overrides(["pytest", "--nonsense", "1"])


def test_copy_keeps_models_and_renews_configurations(tmp_path: Path) -> None:
    root = copy_bundle("brain_mri_anomaly", tmp_path / "mine")
    (root / "models" / "model.pt").write_bytes(b"weights")
    (root / "configs" / "train.yaml").write_text("broken")
    copy_bundle("brain_mri_anomaly", root)
    assert (root / "models" / "model.pt").read_bytes() == b"weights"
    assert "max_epochs" in (root / "configs" / "train.yaml").read_text()


def test_foreign_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(BundleError, match="not empty and not a bundle"):
        copy_bundle("brain_mri_anomaly", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_unknown_bundles_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="brain_mri_anomaly"):
        copy_bundle("brain", tmp_path / "x")
    with pytest.raises(BundleError, match=r"train\.yaml not found"):
        open_workflow(tmp_path, "train")
