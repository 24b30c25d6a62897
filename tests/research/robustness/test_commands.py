"""``mcmiad stress`` and ``mcmiad subgroups``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stressed import make_model

from mcmiad_monai.cli.parser import main
from mcmiad_monai.data.cases.find import find_cases
from mcmiad_monai.networks.detector import MCMIADDetector
from mcmiad_monai.research.robustness.stress import run_stress


def test_commands_print_what_they_write(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = cohort / "datalist.json", tmp_path / "out"
    names = [str(case["case"]) for case in find_cases(source, "test")]
    attributes = tmp_path / "sites.csv"
    attributes.write_text("case,site\n" + "".join(f"{name},{name[:6]}\n" for name in names))
    model = make_model(tmp_path / "model.pt")
    stress = ["stress", str(source), "--bundle", str(model), "--out", str(out), "--device", "cpu"]
    few = ["--corruptions", "blur", "--severities", "1", "--attributes", str(attributes)]
    assert main([*stress, *few, "-q"]) == 0
    assert capsys.readouterr().out == (out / "stress.md").read_text() + "\n"
    groups = ["subgroups", str(out / "studies.csv"), "--attributes", str(attributes)]
    assert main([*groups, "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["attribute"] for row in report["rows"]} >= {"site"}
    assert (tmp_path / "subgroups.md").read_text() == (out / "subgroups.md").read_text()


def test_model_of_colours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"keep_colours": True, "field_of_view": "whole"}
    monkeypatch.setattr(MCMIADDetector, "image_options", options)
    with pytest.raises(ValueError, match="trained on colours"):
        run_stress(make_model(tmp_path / "model.pt"), [], out=tmp_path / "out")
