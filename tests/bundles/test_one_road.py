"""The road of inference.yaml and that of `load` are one: the same files, byte for byte."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from mcmiad_monai import load
from mcmiad_monai.bundle import open_workflow
from mcmiad_monai.data.cases.splits import find_studies
from mcmiad_monai.inference.cohort import infer_cohort


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_bundle_and_python_write_the_same_bytes(trained: Any, tmp_path: Path) -> None:
    options = trained.options(output_dir=str(tmp_path / "monai"))
    open_workflow(trained.root, "inference", options).run()
    cases = find_studies(trained.source, "test", modality=trained.modality)
    infer_cohort(load(trained.root, device="cpu"), cases, tmp_path / "python", progress=False)
    expected, found = files_of(tmp_path / "monai"), files_of(tmp_path / "python")
    assert len(expected) > 2 * len(cases)
    assert json.loads(expected["scores.json"])["failed"] == {}
    assert found == expected


def test_steps_that_were_changed_in_the_file_are_named(
    brain: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "changed"
    shutil.copytree(brain.root, root, ignore=shutil.ignore_patterns("eval", "*.ckpt"))
    with caplog.at_level(logging.WARNING, "mcmiad_monai.predictor"):
        load(root, device="cpu")
        assert not caplog.records
        file = root / "configs" / "inference.yaml"
        text = file.read_text()
        assert "NormalizeMRId" in text
        file.write_text(text.replace("NormalizeMRId", "NormalizeOCTd"))
        load(root, device="cpu")
    (record,) = caplog.records
    assert "preprocessing" in record.getMessage()
    assert "python -m monai.bundle run" in record.getMessage()
