"""Which modality a stress test measures, and what computes it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stressed import FEW, make_model, rows_of

from mcmiad_monai.calibration import Calibration, UnifiedCalibration
from mcmiad_monai.networks.package import load_package, save_package
from mcmiad_monai.research.robustness.stress import run_stress
from mcmiad_monai.runtime.export import export_model


@pytest.fixture(scope="module")
def unified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `model`, unified, with twice its pixel threshold for brain MRI's neighbour."""
    path = make_model(tmp_path_factory.mktemp("unified") / "model.pt", modality="unified")
    detector = load_package(path)
    mri = Calibration.from_dict(detector.calibration)
    other = replace(mri, pixel_threshold=2 * mri.pixel_threshold)
    both = UnifiedCalibration({"brain_mri": mri, "retina_oct": other})
    # the network's own unit is the larger of the two thresholds
    detector.heat_scale.mul_(2)
    save_package(path, detector, calibration=both.to_dict(), provenance={**detector.provenance})
    return path


def test_unified_model_is_measured_as_a_model_of_the_modality(
    unified: Path,
    cases: list[dict[str, Any]],
    straight: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stranger = {**cases[0], "case": "stranger", "modality": "liver_ct"}
    caplog.set_level("INFO", logger="mcmiad_monai")
    report = run_stress(unified, [stranger, *cases], out=tmp_path, modality="brain_mri", **FEW)
    assert "1 cases of other modalities are left out" in caplog.text
    assert report["modality"] == "brain_mri"
    assert report["calibration"] == straight[1]["calibration"]
    few = {name: pytest.approx(value) for name, value in rows_of(straight[1])["clean", 0].items()}
    assert rows_of(report)["clean", 0] == few
    assert report["rows"][0]["pixel_false_positive_rate"] > 0


def test_unified_model_takes_the_modality_that_cases_name(
    unified: Path, cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    few = {**FEW, "corruptions": ["blur"], "severities": [1]}
    untold = [{**case, "modality": None} for case in cases]
    told = [{**untold[0], "modality": "brain_mri"}]
    assert run_stress(unified, told, out=tmp_path, **few)["modality"] == "brain_mri"
    mixed = [*told, {**untold[1], "modality": "liver_ct"}]
    for which, says in ((untold, "none"), (mixed, "'brain_mri', 'liver_ct'")):
        with pytest.raises(ValueError, match=f"one modality at a time.*{says}.*--modality"):
            run_stress(unified, which, out=tmp_path, **few)
    with pytest.raises(ValueError, match="no thresholds for 'liver_ct'"):
        run_stress(unified, mixed, out=tmp_path, modality="liver_ct", **few)


def test_export_beside_the_model_computes_and_is_told(
    model: Path, cases: list[dict[str, Any]], tmp_path: Path, straight: tuple[Path, dict[str, Any]]
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    copied = shutil.copy(model, tmp_path / "model.pt")
    export_model(load_package(copied), tmp_path / "model.onnx")
    few = {**FEW, "corruptions": ["rotation"]}
    report = run_stress(copied, cases, out=tmp_path / "out", **few)
    assert straight[1]["engine"].startswith("PyTorch")
    assert report["engine"].startswith("onnxruntime")
    exact = rows_of(straight[1])
    for place, row in rows_of(report).items():
        figures = {n: v for n, v in exact[place].items() if "auroc" in n}
        assert {n: row[n] for n in figures} == pytest.approx(figures, abs=1e-3)
