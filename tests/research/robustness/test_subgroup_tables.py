"""Scores of an inference as its report writes them: threshold and studies from CSV and JSON."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine

from mcmiad_monai.inference.cohort import CohortReport
from mcmiad_monai.research.robustness.subgroup_tables import SubgroupError, find_threshold
from mcmiad_monai.research.robustness.subgroups import subgroup_report


def write_inference(folder: Path, *, volume_threshold: float | str = 1.2) -> None:
    """Twelve studies and one that failed; the verdict on slices is no truth."""
    items = []
    for k in range(12):
        slices = [{"index": z, "score": 0.1 * z, "anomalous": k < 2} for z in range(3)]
        scores = {"case": f"c{k}", "volume_score": 0.25 * k, "slices": slices, "slices_scored": 3}
        items.append({"scores": scores})
    engine = Engine(lambda _engine, item: [item])
    engine.failures = {"bad": "VolumeError: 4-D"}  # type: ignore[attr-defined]
    CohortReport(folder, calibration={"volume_threshold": volume_threshold}).attach(engine)
    engine.run(items)


def write_attributes(path: Path) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "sex", "anomalous"])
        table.writerows([f"c{k}", "FM"[k % 2], int(k >= 6)] for k in range(12))
        table.writerow(["bad", "F", 0])
    return path


def rows_of(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["attribute"], row["group"]): row for row in report["rows"]}


@pytest.mark.parametrize("name", ["scores.csv", "scores.json"])
def test_either_file_of_an_inference_gives_the_same_figures(tmp_path: Path, name: str) -> None:
    write_inference(tmp_path)
    attributes = write_attributes(tmp_path / "a.csv")
    report = subgroup_report(tmp_path / name, attributes, out=tmp_path / "out", draws=50)
    assert report["volume_threshold"] == 1.2
    assert report["cases_not_scored"] == ["bad"]
    everyone = rows_of(report)["all", "all"]
    assert (everyone["normal"], everyone["anomalous"]) == (6, 6)
    assert everyone["volume_auroc"] == 1
    assert (everyone["false_positives"], everyone["detections"]) == (1, 6)  # 1.25 of a normal
    assert rows_of(report)["sex", "F"]["studies"] == 6


def test_threshold_that_could_not_be_set_gives_no_rates(tmp_path: Path) -> None:
    write_inference(tmp_path, volume_threshold="inf")
    attributes = write_attributes(tmp_path / "a.csv")
    report = subgroup_report(tmp_path / "scores.json", attributes, out=tmp_path / "out", draws=50)
    assert report["volume_threshold"] is None
    assert rows_of(report)["all", "all"]["false_positive_rate"] is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"rows": []}', r"has \['rows'\] and no list of scores"),
        ("case,volume_score", "is not JSON"),
        ("[1, 2]", "holds a list; an object is needed"),
        ('{"scores": []}', "volume_score is needed"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    attributes = write_attributes(tmp_path / "a.csv")
    with pytest.raises(SubgroupError, match=told):
        subgroup_report(tmp_path / "scores.json", attributes, out=tmp_path / "out")


def test_threshold_of_an_evaluation_is_found_beside_its_studies(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"calibration": {"volume_threshold": 2.5}}')
    assert find_threshold(tmp_path / "studies.csv") == 2.5
    (tmp_path / "stress.json").write_text('{"calibration": {"volume_threshold": "inf"}}')
    assert find_threshold(tmp_path / "studies.csv") is None
    assert find_threshold(tmp_path / "other.csv") is None
