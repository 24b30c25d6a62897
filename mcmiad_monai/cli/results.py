"""The command ``mcmiad results``."""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mcmiad_monai.cli.console import print_json
from mcmiad_monai.cli.options import Commands, add_command, add_json, positive
from mcmiad_monai.errors import escaped

if TYPE_CHECKING:
    import duckdb

#: What is shown of the most anomalous studies.
TOP = """
SELECT "case", score, threshold, verdict, anomaly_ml,
       hottest_x_mm AS x_mm, hottest_y_mm AS y_mm, hottest_z_mm AS z_mm, warnings
FROM results WHERE status = 'done'
ORDER BY score DESC NULLS LAST, "case" LIMIT {}
"""
#: Studies without a result, and why.
WITHOUT = """
SELECT "case", status, error FROM results WHERE status NOT IN ('done', 'pending')
ORDER BY status, "case" LIMIT {}
"""
#: What is known of the studies in few words.
SUMMARY = """
SELECT word, n FROM (
    SELECT status AS word, count(*) AS n, 0 AS place FROM results GROUP BY ALL
    UNION ALL
    SELECT coalesce(verdict, 'none'), count(*), 1 FROM results WHERE status = 'done' GROUP BY ALL
    UNION ALL
    SELECT warning, count(*), 2
    FROM (SELECT unnest(string_split(warnings, ' ')) AS warning FROM results)
    WHERE warning <> '' GROUP BY ALL
) ORDER BY place, word
"""
WORDS = {"none": "without a verdict"}


def add_commands(commands: Commands) -> None:
    """Add the parser."""
    results = add_command(
        commands, "results", _results, "show the results of `screen` or `infer` as a table"
    )
    results.add_argument("out", type=Path, metavar="D", help="what --out was")
    results.add_argument(
        "--top",
        type=positive,
        default=20,
        metavar="N",
        help="how many of the most anomalous studies to show (default: 20)",
    )
    results.add_argument(
        "--sql",
        metavar="SELECT",
        help="answer a question to the table results, which has the columns of results.parquet",
    )
    results.add_argument(
        "--csv", metavar="FILE", help="write all rows, or those of --sql, as CSV; - prints them"
    )
    add_json(results)


def _results(options: argparse.Namespace) -> None:
    from mcmiad_monai.cohort.results import open_results, select
    from mcmiad_monai.files.writing import replace_atomically

    with open_results(options.out) as connection:
        query = options.sql or "FROM results ORDER BY number"
        if options.csv == "-":
            _write_csv(sys.stdout, *select(connection, query))
        elif options.csv:
            names, rows = select(connection, query)

            def write(partial: Path) -> None:
                with partial.open("w", encoding="utf-8", newline="") as file:
                    _write_csv(file, names, rows)

            replace_atomically(options.csv, write)
        elif options.sql and options.json:
            names, rows = select(connection, query)
            print_json([_plain(names, row) for row in rows])
        elif options.sql:
            names, rows = select(connection, query)
            for row in (names, *rows):
                print("\t".join(_text(cell) for cell in row))
        elif options.json:
            print_json(_overview(connection, options.top))
        else:
            _show(connection, options.top)


def _overview(connection: duckdb.DuckDBPyConnection, top: int) -> dict[str, Any]:
    """Counts and the most anomalous studies, for other programs."""
    from mcmiad_monai.cohort.results import select, statuses

    names, rows = select(connection, TOP.format(top))
    return {
        "studies": statuses(connection),
        "top": [_plain(names, row) for row in rows],
    }


def _show(connection: duckdb.DuckDBPyConnection, top: int) -> None:
    """Counts, the most anomalous studies, and those without a result."""
    from mcmiad_monai.cohort.results import select

    words = [f"{n} {WORDS.get(word, word)}" for word, n in select(connection, SUMMARY)[1]]
    print(", ".join(words))
    for query in (TOP, WITHOUT):
        names, rows = select(connection, query.format(top))
        if table := list(rows):
            print()
            _print_table([names, *table])


def _print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Rows below the names of their columns; numbers stand on the right."""
    numeric = [
        any(isinstance(cell, (int, float)) for cell in column) for column in zip(*rows, strict=True)
    ]
    table = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = zip(row, widths, numeric, strict=True)
        print("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in cells).rstrip())


def _write_csv(file: TextIO, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from mcmiad_monai.files.writing import csv_cell

    table = csv.writer(file, lineterminator="\n")
    table.writerow(names)
    table.writerows([csv_cell(cell) for cell in row] for row in rows)


def _text(cell: Any) -> str:
    """A cell on the screen."""
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else escaped(str(cell))


def _plain(names: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    """A row for JSON, which has no word for NaN and infinity."""
    values = (None if isinstance(v, float) and not math.isfinite(v) else v for v in row)
    return dict(zip(names, values, strict=True))
