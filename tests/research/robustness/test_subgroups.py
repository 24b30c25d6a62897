"""Figures by group: counts, intervals, bands and the tables they come from."""

from __future__ import annotations

import csv
import json
import logging
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ignite.engine import Engine
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from mcmiad_monai.inference.cohort import CohortReport
from mcmiad_monai.research.robustness.subgroup_tables import SubgroupError
from mcmiad_monai.research.robustness.subgroups import labels_of, subgroup_report

HEADER = ["case", "slices", "anomalous_slices", "volume_score"]


def write(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def make_studies(count: int = 60) -> list[list[Any]]:
    """Every third study is anomalous, and has a higher score as a rule."""
    rng = np.random.default_rng(0)
    scores = rng.normal(1.0, 0.3, count) + 0.4 * (np.arange(count) % 3 == 0)
    return [[f"c{k:02d}", 5, 2 * (k % 3 == 0), f"{scores[k]:.4f}"] for k in range(count)]


def make_tables(tmp_path: Path) -> tuple[Path, Path]:
    """Studies, of which the last is without attributes; attributes, of which one has no study."""
    studies = make_studies()
    attributes = [
        [row[0], "A" if k < 40 else "B", "" if k == 1 else "f" if k % 2 else "m", 25 + k]
        for k, row in enumerate(studies[:-1])
    ]
    attributes.append(["absent", "A", "f", 50])
    return (
        write(tmp_path / "studies.csv", [HEADER, *studies]),
        write(tmp_path / "attributes.csv", [["case", "scanner", "sex", "age"], *attributes]),
    )


def rows_of(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["attribute"], row["group"]): row for row in report["rows"]}


def report_of(tmp_path: Path, **options: Any) -> dict[str, Any]:
    studies, attributes = make_tables(tmp_path)
    return subgroup_report(
        studies, attributes, out=tmp_path / "out", **{"threshold": 1.3} | options
    )


def test_figures_of_a_group_are_those_of_its_studies(tmp_path: Path) -> None:
    row = rows_of(report_of(tmp_path))["scanner", "A"]
    own = make_studies()[:40]
    truth = np.array([study[2] > 0 for study in own])
    scores = np.array([float(study[3]) for study in own])
    assert (row["studies"], row["normal"], row["anomalous"]) == (40, 26, 14)
    assert row["volume_auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert row["volume_auroc_low"] < row["volume_auroc"] < row["volume_auroc_high"]
    wrong = int((scores[~truth] > 1.3).sum())
    assert wrong > 0
    assert (row["false_positives"], row["false_positive_rate"]) == (wrong, wrong / 26)
    assert row["false_positive_rate_low"] == pytest.approx(beta.ppf(0.025, wrong, 27 - wrong))
    assert row["false_positive_rate_high"] == pytest.approx(beta.ppf(0.975, wrong + 1, 26 - wrong))
    found = int((scores[truth] > 1.3).sum())
    assert (row["detections"], row["sensitivity"]) == (found, found / 14)
    assert row["warning"] == ""


def test_everyone_stands_first_and_who_is_missing_is_listed(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    assert (report["rows"][0]["attribute"], report["rows"][0]["studies"]) == ("all", 60)
    assert report["cases_without_attributes"] == ["c59"]
    assert report["cases_without_scores"] == ["absent"]
    stored = json.loads((tmp_path / "out" / "subgroups.json").read_text())
    assert stored["rows"] == report["rows"]
    table = list(csv.DictReader((tmp_path / "out" / "subgroups.csv").open(encoding="utf-8")))
    assert [row["group"] for row in table] == [row["group"] for row in report["rows"]]
    text = (tmp_path / "out" / "subgroups.md").read_text(encoding="utf-8")
    assert "## scanner" in text
    assert "cases without attributes: c59" in text
    assert "cases without scores: absent" in text


def test_small_groups_are_warned_of_and_an_empty_value_is_a_group(tmp_path: Path) -> None:
    rows = rows_of(report_of(tmp_path))
    told = "13 normals, fewer than 20; 6 anomalous, fewer than 10"
    assert rows["scanner", "B"]["warning"] == told
    alone = rows["sex", "not given"]
    assert (alone["studies"], alone["normal"]) == (1, 1)
    assert alone["volume_auroc"] is None
    assert alone["sensitivity"] is None


def test_ages_are_cut_into_bands_at_40_60_and_75() -> None:
    ages = ["39.9", "40", "59", "60", "74", "75", "", "8"]
    labels, order = labels_of("Age", ages)
    assert labels == ["<40", "40–59", "40–59", "60–74", "60–74", "≥75", "not given", "<40"]
    assert order == ["<40", "40–59", "60–74", "≥75", "not given"]
    with pytest.raises(SubgroupError, match=r"column age has \['045Y'\]; years as a number"):
        labels_of("age", ["045Y", "50"])


def test_many_numbers_are_cut_into_quartiles_and_few_are_groups() -> None:
    values = [str(k) for k in range(1, 21)]
    labels, order = labels_of("dose", values)
    assert order == ["≤5.75", ">5.75 to 10.5", ">10.5 to 15.25", ">15.25"]
    assert [labels.count(name) for name in order] == [5, 5, 5, 5]
    assert labels_of("field", ["1.5", "3", "3"]) == (["1.5", "3", "3"], ["1.5", "3"])


def test_column_of_names_makes_no_groups_and_is_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    studies = write(tmp_path / "studies.csv", [HEADER, *make_studies()])
    names = [[row[0], f"secret{k}", "A"] for k, row in enumerate(make_studies())]
    table = write(tmp_path / "a.csv", [["case", "name", "site"], *names])
    with caplog.at_level(logging.DEBUG):
        report = subgroup_report(studies, table, out=tmp_path / "out")
    assert report["columns_without_groups"] == {
        "name": "60 distinct values; at most 20 make groups"
    }
    written = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()]
    assert all("secret" not in text for text in [*written, caplog.text])


def test_studies_of_a_patient_are_drawn_together(tmp_path: Path) -> None:
    studies = write(tmp_path / "studies.csv", [HEADER, *make_studies()])
    rows = [[row[0], "A", f"p{k // 20}"] for k, row in enumerate(make_studies())]
    table = write(tmp_path / "a.csv", [["case", "site", "patient"], *rows])
    whole = subgroup_report(studies, table, out=tmp_path / "out")["rows"][0]
    single = report_of(tmp_path)["rows"][0]
    assert (whole["patients"], single["patients"]) == (3, 60)
    assert whole["volume_auroc"] == single["volume_auroc"]
    # of the ten ways to draw three patients, the rarest comes in 1 of 27 draws, more than a tail
    own = make_studies()
    parts = [range(k, k + 20) for k in (0, 20, 40)]
    ways = []
    for draw in combinations_with_replacement(parts, 3):
        drawn = [own[k] for part in draw for k in part]
        ways.append(roc_auc_score([r[2] > 0 for r in drawn], [float(r[3]) for r in drawn]))
    assert whole["volume_auroc_low"] == pytest.approx(min(ways))
    assert whole["volume_auroc_high"] == pytest.approx(max(ways))


def test_scores_of_an_inference_need_to_be_told_what_is_anomalous(tmp_path: Path) -> None:
    header = ["case", "volume_score", "slice", "slice_score", "anomalous", "error"]
    # the verdict on a slice is no truth: here it is wrong for every study
    slices = [
        [case, score, k, score, case == "n", ""]
        for case, score in (("n", 1.0), ("l", 2.0))
        for k in range(3)
    ]
    scores = write(tmp_path / "scores.csv", [header, *slices, ["bad", "", "", "", "", "broken"]])
    plain = [["case", "site"], ["n", "A"], ["l", "A"], ["bad", "A"]]
    with pytest.raises(SubgroupError, match="not known whether n, l are anomalous"):
        subgroup_report(scores, write(tmp_path / "a.csv", plain), out=tmp_path)
    told = [[*row, truth] for row, truth in zip(plain, ("anomalous", "no", 1, ""), strict=True)]
    report = subgroup_report(scores, write(tmp_path / "b.csv", told), out=tmp_path, threshold=1.5)
    row = report["rows"][1]
    assert (row["group"], row["studies"], row["volume_auroc"]) == ("A", 2, 1)
    assert (row["false_positives"], row["detections"]) == (0, 1)
    assert report["cases_not_scored"] == ["bad"]


@pytest.mark.parametrize(
    ("file", "stored", "given", "expected"),
    [
        ("stress.json", 1.3, None, 1.3),
        ("metrics.json", 1.3, None, 1.3),
        ("stress.json", 1.3, 2.0, 2.0),
        ("stress.json", "inf", None, None),  # it could not be set
        ("other.json", 1.3, None, None),
        ("other.json", 1.3, float("inf"), None),
    ],
)
def test_threshold_is_that_of_the_report_beside_the_scores_and_without_one_are_no_rates(
    tmp_path: Path, file: str, stored: Any, given: float | None, expected: float | None
) -> None:
    (tmp_path / file).write_text(json.dumps({"calibration": {"volume_threshold": stored}}))
    report = report_of(tmp_path, threshold=given)
    assert report["volume_threshold"] == expected
    row, text = report["rows"][0], (tmp_path / "out" / "subgroups.md").read_text("utf-8")
    for name in ("false_positive_rate", "sensitivity", "detections"):
        assert (row[name] is None) == (expected is None)
    assert row["volume_auroc"] is not None
    assert ("Volume threshold: not set" in text) == (expected is None)


@pytest.mark.parametrize("name", ["scores.csv", "scores.json"])
def test_either_file_of_an_inference_gives_the_same_figures(tmp_path: Path, name: str) -> None:
    """Twelve studies, one that failed and one without score, as the report of a cohort has them."""
    items = []
    for k in range(12):
        slices = [{"index": z, "score": 0.1 * z, "anomalous": k < 2} for z in range(3)]
        scores = {"case": f"c{k}", "volume_score": 0.25 * k, "slices": slices, "slices_scored": 3}
        items.append({"scores": {**scores, "warnings": []}})
    none = {"volume_score": None, "slices": [], "slices_scored": 0}
    items.append({"scores": {"case": "dark", **none, "warnings": ["nothing_looked_at"]}})
    engine = Engine(lambda _engine, item: [item])
    engine.failures = {"bad": "VolumeError: 4-D"}  # type: ignore[attr-defined]
    CohortReport(tmp_path, calibration={"volume_threshold": 1.2}).attach(engine)
    engine.run(items)
    table = [[f"c{k}", "FM"[k % 2], int(k >= 6)] for k in range(12)]
    header = ["case", "sex", "anomalous"]
    attributes = write(tmp_path / "a.csv", [header, *table, ["bad", "F", 0], ["dark", "M", 0]])
    report = subgroup_report(tmp_path / name, attributes, out=tmp_path / "out")
    assert report["volume_threshold"] == 1.2
    assert report["cases_not_scored"] == ["bad", "dark"]
    everyone = rows_of(report)["all", "all"]
    assert (everyone["normal"], everyone["anomalous"]) == (6, 6)
    assert everyone["volume_auroc"] == 1
    assert (everyone["false_positives"], everyone["detections"]) == (1, 6)  # 1.25 of a normal
    assert rows_of(report)["sex", "F"]["studies"] == 6


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
    attributes = write(tmp_path / "a.csv", [["case", "sex"], ["c0", "F"]])
    with pytest.raises(SubgroupError, match=told):
        subgroup_report(tmp_path / "scores.json", attributes, out=tmp_path / "out")


def test_study_without_slices_is_not_scored(tmp_path: Path) -> None:
    rows = [["a", 5, 0, 1.0], ["b", 5, 2, 2.0], ["empty", 0, 0, 0.0]]
    studies = write(tmp_path / "studies.csv", [HEADER, *rows])
    table = write(tmp_path / "a.csv", [["case", "site"], ["a", "A"], ["b", "A"], ["empty", "A"]])
    report = subgroup_report(studies, table, out=tmp_path)
    assert report["rows"][0]["studies"] == 2
    assert report["cases_not_scored"] == ["empty"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name,site\na,A\n", "one column case"),
        ("case;site\na;A\n", "separated by semicolons"),
        ("case,site,site\na,A,B\n", "no name twice"),
        ("case,site\n", "no line below its header"),
        ("case,site\na,A\na,B\n", "a more than once"),
        ("case,site\n,A\n", "an empty case"),
        ("case,site\na,A,B\n", r"more or fewer values than columns in its lines \[2\]"),
        ("case,patient\na,p\n", "has no attribute"),
        ("case,site\nz,A\n", "no case of .* has attributes"),
        ("case,site,anomalous\na,A,maybe\n", "'maybe' for anomalous"),
    ],
)
def test_wrong_attributes_are_refused_with_the_way_out(
    tmp_path: Path, content: str, told: str
) -> None:
    studies = write(tmp_path / "studies.csv", [HEADER, ["a", 5, 0, 1.0], ["b", 5, 1, 2.0]])
    table = tmp_path / "attributes.csv"
    table.write_text(content, encoding="utf-8")
    with pytest.raises(SubgroupError, match=told):
        subgroup_report(studies, table, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_scores_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", [["case", "site"], ["a", "A"]])
    for rows, told in (
        ([HEADER[:3], ["a", 5, 0]], "volume_score is needed"),
        ([HEADER, ["a", 5, 0, 1.0], ["a", 5, 0, 1.0]], "a more than once"),
        ([HEADER, ["a", 5, 0, "nan"]], "'nan' for volume_score of a"),
    ):
        with pytest.raises(SubgroupError, match=told):
            subgroup_report(write(tmp_path / "studies.csv", rows), table, out=tmp_path)
    with pytest.raises(SubgroupError, match="does not exist"):
        subgroup_report(tmp_path / "none.csv", table, out=tmp_path)


def test_table_of_a_spreadsheet_with_a_mark_and_blanks_is_read(tmp_path: Path) -> None:
    studies = write(tmp_path / "studies.csv", [HEADER, ["a", 5, 0, 1.0], ["b", 5, 1, 2.0]])
    table = tmp_path / "attributes.csv"
    table.write_text("\ufeffcase, site\na, A\nb , A \n", encoding="utf-8")
    report = subgroup_report(studies, table, out=tmp_path)
    assert [(row["group"], row["studies"]) for row in report["rows"]] == [("all", 2), ("A", 2)]
