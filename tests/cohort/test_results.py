"""Results of a cohort as one table, and questions to it."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path
from typing import Any

import duckdb
import pytest
from ledgers import ALIVE, DEAD, ELSEWHERE, done, record, torn, write_plan

from mcmiad_monai.cli.parser import main
from mcmiad_monai.cohort.results import COLUMNS, collect, exit_code, open_results, select
from mcmiad_monai.cohort.sql import CohortError

FOUND = {
    "score": 1.5,
    "threshold": 1.0,
    "verdict": "anomalous",
    "warnings": "",
    "anomaly_ml": 2.25,
    "hottest": 3.5,
    "hottest_x_mm": -1.0,
    "hottest_y_mm": 2.0,
    "hottest_z_mm": 30.5,
    "slices": 24,
    "slices_above": 3,
    "seconds": 0.75,
    "modality": "flair",
    "input": "00ff",
    "model": "ff00",
    "folder": "s0",
}
NORMAL = FOUND | {"score": 0.5, "verdict": "normal", "anomaly_ml": 0.0, "folder": None}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A cohort with a study of each kind."""
    out = tmp_path / "out"
    write_plan(
        out,
        [
            {"case": "s0", "image": "/in/s0.nii.gz", "patient": "ab12"},
            {"case": "s1", "image": "/in/s1.nii.gz", "modality": "t1"},
            {"case": "s2", "image": "/in/\udcff.nii.gz"},
            {"case": "=s3", "image": "/in/s3.nii.gz"},
            {"case": "s4", "image": "/in/s4.nii.gz"},
            {"case": "s5", "image": "/in/s5.nii.gz"},
        ],
    )
    record(out, DEAD, "begin", 0)
    done(out, ELSEWHERE, 0, time=5.5, **FOUND)
    done(out, DEAD, 0, **NORMAL)
    done(out, DEAD, 1, **NORMAL)
    done(out, DEAD, 2, status="refused", error="VolumeError: 4 dimensions, \udcff")
    for _ in range(3):
        record(out, DEAD, "begin", 3)
    record(out, DEAD, "end", 3, status="quarantined", error="it killed 3 workers")
    record(out, ALIVE, "begin", 4)
    torn(out, DEAD, '{"event": "end", "number": 5, "status"')
    return out


def table(path: Path) -> list[dict[str, Any]]:
    result = duckdb.sql(f"FROM '{path}'")
    return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]


def ask(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with open_results(folder) as connection:
        return list(select(connection, query)[1])


def test_the_table_has_a_row_for_each_study_of_the_plan(out: Path) -> None:
    assert collect(out) == {"done": 2, "refused": 1, "quarantined": 1, "pending": 2}
    rows = table(out / "results.parquet")
    assert [row["number"] for row in rows] == list(range(6))
    assert rows[0] == {
        "number": 0,
        "case": "s0",
        "image": "/in/s0.nii.gz",
        "patient": "ab12",
        "status": "done",
        "error": None,
        "attempts": 3,
        "worker": ELSEWHERE,
        "ended": 5.5,
        **FOUND,
    }
    assert [row["status"] for row in rows[1:]] == [
        *("done", "refused", "quarantined", "pending", "pending")
    ]
    assert rows[2]["image"] == r"/in/\udcff.nii.gz"
    assert rows[2]["error"] == r"VolumeError: 4 dimensions, \udcff"
    assert (rows[1]["modality"], rows[4]["modality"]) == ("flair", None)
    assert [row["attempts"] for row in rows] == [3, 1, 1, 3, 1, 0]


def test_columns_have_their_order_and_types(out: Path) -> None:
    collect(out)
    found = duckdb.sql(f"DESCRIBE FROM '{out}/results.parquet'").fetchall()
    assert {name: kind for name, kind, *_ in found} == COLUMNS
    assert [name for name, *_ in found] == list(COLUMNS)


def test_a_table_is_replaced_whole_and_leaves_nothing_beside(out: Path) -> None:
    (out / "results.parquet").write_text("of before")
    collect(out)
    assert len(table(out / "results.parquet")) == 6
    assert sorted(p.name for p in out.iterdir()) == ["plan.jsonl", "records", "results.parquet"]


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({"done": 3}, 0),
        ({"done": 3, "refused": 0, "pending": 0}, 0),
        ({"done": 3, "refused": 1}, 1),
        ({"failed": 1}, 1),
        ({"quarantined": 1}, 1),
        ({"done": 3, "quarantined": 1, "pending": 2}, 3),
        ({"done": 3, "in progress": 1}, 3),
    ],
)
def test_exit_codes(counts: dict[str, int], code: int) -> None:
    assert exit_code(counts) == code


def test_a_table_that_is_collected_while_workers_write_is_of_one_moment(tmp_path: Path) -> None:
    write_plan(tmp_path, 2000)

    def work() -> None:
        for number in range(2000):
            done(tmp_path, DEAD, number, **FOUND)

    writer = threading.Thread(target=work)
    writer.start()
    while writer.is_alive():
        collect(tmp_path)
        rows = table(tmp_path / "results.parquet")
        assert [row["number"] for row in rows] == list(range(2000))
        for row in rows:
            assert (row["status"] == "done") == (row["score"] == 1.5) == (row["ended"] is not None)
            assert row["attempts"] == 1 or row["status"] == "pending"
    writer.join()
    assert collect(tmp_path) == {"done": 2000}


def test_questions_are_answered_from_what_the_ledger_says_now(out: Path) -> None:
    collect(out)
    done(out, ELSEWHERE, 5, **NORMAL)
    assert ask(out, "SELECT count(*) FROM results WHERE status = 'done'") == [(3,)]


def test_a_table_in_which_nothing_is_pending_is_taken_as_it_is(out: Path) -> None:
    for number in (4, 5):
        done(out, ELSEWHERE, number, **NORMAL)
    collect(out)
    (out / "records").rename(out / "archived")
    assert ask(out, "SELECT count(*) FROM results WHERE status = 'done'") == [(4,)]


def test_a_table_alone_is_taken_as_it_is(out: Path, tmp_path: Path) -> None:
    collect(out)
    alone = tmp_path / "alone"
    alone.mkdir()
    (out / "results.parquet").rename(alone / "results.parquet")
    assert ask(alone, "SELECT count(*) FROM results WHERE status = 'pending'") == [(2,)]


def test_what_is_no_question_to_the_table_is_refused(out: Path) -> None:
    secret = out.parent / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    with open_results(out) as connection:
        for question in (
            f"SELECT * FROM read_text('{secret}')",
            f"SELECT * FROM '{secret}'",
            "FROM glob('/*')",
            f"COPY results TO '{secret}2'",
            f"ATTACH '{secret}3'",
            "SELECT 1; DROP TABLE results",
            "SET enable_external_access = true",
            "DELETE FROM results",
            "SELECT * FROM connection",
            "SELEC",
            "SELECT case FROM results",
            "SELECT nothing FROM results",
            "",
        ):
            with pytest.raises(CohortError, match=r"DuckDB cannot answer|one SELECT is needed"):
                list(select(connection, question)[1])
    assert {path.name for path in out.parent.iterdir()} == {"out", "secret.csv"}


def test_two_questions_are_answered_at_a_time(out: Path) -> None:
    with open_results(out) as connection:
        first = select(connection, "SELECT number FROM results ORDER BY number")[1]
        second = select(connection, "SELECT -number FROM results ORDER BY number")[1]
        assert [a + b for (a,), (b,) in zip(first, second, strict=True)] == [0] * 6


def test_a_folder_that_no_command_wrote_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(tmp_path)]) == 2
    assert "no plan.jsonl, no results.parquet and no scores.json" in capsys.readouterr().err


def test_the_command_shows_counts_the_most_anomalous_and_reasons(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(out)]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "2 done, 2 pending, 1 quarantined, 1 refused, 1 anomalous, 1 normal"
    assert [line.split()[:2] for line in others if line.startswith(("s0", "s1"))] == [
        ["s0", "1.5"],
        ["s1", "0.5"],
    ]
    assert r"VolumeError: 4 dimensions, \udcff" in "\n".join(others)
    assert main(["results", str(out), "--top", "1"]) == 0
    assert "\ns1" not in capsys.readouterr().out


def test_the_command_answers_in_sql_json_and_csv(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = 'SELECT "case", score, 0/0.0 AS nan FROM results WHERE score > 1'
    assert main(["results", str(out), "--sql", question]) == 0
    assert capsys.readouterr().out == "case\tscore\tnan\ns0\t1.5\tnan\n"
    assert main(["results", str(out), "--sql", question, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"case": "s0", "score": 1.5, "nan": None}]
    assert main(["results", str(out), "--sql", question, "--csv", "-"]) == 0
    assert capsys.readouterr().out == "case,score,nan\ns0,1.5,nan\n"
    assert main(["results", str(out), "--json", "--top", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["studies"] == {"done": 2, "refused": 1, "quarantined": 1, "pending": 2}
    assert [row["case"] for row in told["top"]] == ["s0"]


def test_a_csv_has_all_rows_and_no_formula(out: Path) -> None:
    path = out / "results.csv"
    assert main(["results", str(out), "--csv", str(path)]) == 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["case"] for row in rows] == ["s0", "s1", "s2", "'=s3", "s4", "s5"]
    assert rows[0]["hottest_x_mm"] == "-1.0"


def test_names_on_the_screen_forge_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path, 1)
    done(tmp_path, DEAD, 0, status="failed", error="a\nb\x1b[31m")
    assert main(["results", str(tmp_path)]) == 0
    assert r"a\nb\x1b[31m" in capsys.readouterr().out


REPORT = {
    "scores": [
        {
            "case": "a",
            "modality": "flair",
            "volume_score": 2.0,
            "volume_threshold": 1.0,
            "anomalous": True,
            "warnings": ["out_of_distribution"],
            "anomaly_ml": 1.5,
            "hottest": 4.0,
            "hottest_mm": [1.0, -2.0, 3.0],
            "slices": [
                {"index": 0, "score": 2.0, "slice_threshold": 1.0, "anomalous": True},
                {"index": 1, "score": 0.5, "slice_threshold": 1.0, "anomalous": False},
            ],
            "input": "00",
            "made_with": {"model": "ff"},
        },
        {  # of an older version
            "case": "b\udcff",
            "volume_score": None,
            "volume_threshold": None,
            "anomalous": None,
            "slices": [],
        },
    ],
    "failed": {"a": "OSError: disk", "c": "VolumeError: too thin"},
    "not_done": ["d"],
}


def test_the_report_of_infer_is_a_table_of_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(REPORT))
    (tmp_path / "a").mkdir()
    rows = ask(tmp_path, "FROM results ORDER BY number")
    first = dict(zip(COLUMNS, rows[0], strict=True))
    assert first == dict.fromkeys(COLUMNS) | {
        "number": 0,
        "case": "a",
        "status": "done",
        "score": 2.0,
        "threshold": 1.0,
        "verdict": "anomalous",
        "warnings": "out_of_distribution",
        "anomaly_ml": 1.5,
        "hottest": 4.0,
        "hottest_x_mm": 1.0,
        "hottest_y_mm": -2.0,
        "hottest_z_mm": 3.0,
        "slices": 2,
        "slices_above": 1,
        "error": "OSError: disk",
        "modality": "flair",
        "input": "00",
        "model": "ff",
        "folder": "a",
    }
    told = ask(tmp_path, 'SELECT "case", status, verdict, error FROM results ORDER BY number')
    assert told[1:] == [
        (r"b\udcff", "done", "none", None),
        ("c", "failed", None, "VolumeError: too thin"),
        ("d", "pending", None, None),
    ]


@pytest.mark.parametrize("content", ["[]", "{", '{"scores": [1], "failed": {}}', "{}"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(CohortError, match="is no report of studies"):
        ask(tmp_path, "FROM results")
