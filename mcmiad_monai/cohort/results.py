"""The results of a cohort as one table, whichever command made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.cohort.of_infer import insert_report
from mcmiad_monai.cohort.sql import CohortError, database, reachable, read_events, read_plan
from mcmiad_monai.files.writing import replace_atomically

if TYPE_CHECKING:
    import duckdb

#: Name of the table of results in a cohort's folder.
RESULTS = "results.parquet"
#: Columns that the worker tells of a study, in its ``end`` line.
ROW = {
    "score": "DOUBLE",
    "threshold": "DOUBLE",
    "verdict": "VARCHAR",
    "warnings": "VARCHAR",
    "anomaly_ml": "DOUBLE",
    "hottest": "DOUBLE",
    "hottest_x_mm": "DOUBLE",
    "hottest_y_mm": "DOUBLE",
    "hottest_z_mm": "DOUBLE",
    "slices": "BIGINT",
    "slices_above": "BIGINT",
    "seconds": "DOUBLE",
    "error": "VARCHAR",
}
#: Columns of the table of results, in their order, and their types.
COLUMNS = {
    "number": "BIGINT",
    "case": "VARCHAR",
    "image": "VARCHAR",
    "patient": "VARCHAR",
    "status": "VARCHAR",
    **ROW,
    "attempts": "BIGINT",
    "worker": "VARCHAR",
    "ended": "DOUBLE",
    "modality": "VARCHAR",
    "input": "VARCHAR",
    "model": "VARCHAR",
    "folder": "VARCHAR",
}
#: What of an ``end`` line is in the table under a name of its own, or from the ledger.
FROM_LEDGER = {"image", "patient", "attempts", "ended", *("number", "case", "worker")}

FROM_EVENTS = f"""
INSERT INTO results
WITH first AS (             -- of several ends of a study the first holds
    SELECT * FROM events WHERE event = 'end'
    QUALIFY row_number() OVER (PARTITION BY number ORDER BY time, worker) = 1
), tries AS (
    SELECT number, count(*) FILTER (event = 'begin') - count(*) FILTER (event = 'stopped') AS n
    FROM events GROUP BY number
)
SELECT plan.number, plan.case, plan.image, plan.patient,
       coalesce(first.status, 'pending'),
       {", ".join(f"first.{name}" for name in ROW)},
       coalesce(tries.n, 0), first.worker, first.time,
       coalesce(first.modality, plan.modality), first.input, first.model, first.folder
FROM plan LEFT JOIN first USING (number) LEFT JOIN tries USING (number)
ORDER BY plan.number
"""


def collect(out: str | Path) -> dict[str, int]:
    """Write ``results.parquet``, one row a study of the plan, whole or not at all.

    Workers may be writing meanwhile: the table is of one moment, and studies that have no end in it
    are ``pending``.

    Parameters
    ----------
    out : path
        Folder of a cohort.

    Returns
    -------
    dict
        How many studies have which status; see `exit_code`.

    Raises
    ------
    CohortError
        If the folder has no plan.
    DiskFullError
        If there is no room for the table.
    """
    with database() as connection:
        _read_ledger(connection, out)
        replace_atomically(Path(out) / RESULTS, lambda partial: _write(connection, partial))
        return statuses(connection)


def exit_code(counts: Mapping[str, int]) -> int:
    """Exit code for counts of `collect` or of `state.counts`.

    Returns
    -------
    int
        3 where studies are pending or in progress, 1 where some were refused, failed or
        quarantined, 0 where all are done.
    """
    if counts.get("pending") or counts.get("in progress"):
        return 3
    return int(any(n for status, n in counts.items() if status != "done"))


@contextmanager
def open_results(folder: str | Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the table ``results`` of `COLUMNS`, as things are now.

    It is of the ledger of ``mcmiad screen``; of ``results.parquet``, where no study in it is
    pending, or there is no ledger; or of ``scores.json`` of ``mcmiad infer``, as far as that tells.
    The database reaches no file, and has no other setting than its own.

    Parameters
    ----------
    folder : path
        What ``--out`` was.

    Raises
    ------
    CohortError
        If the folder has none of these.
    """
    with database() as connection:
        _fill(connection, Path(folder))
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection


def statuses(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many studies have which status."""
    return dict(connection.execute("SELECT status, count(*) FROM results GROUP BY ALL").fetchall())


def select(
    connection: duckdb.DuckDBPyConnection, query: str
) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Names of the columns, and the rows, that a question in SQL gives.

    Parameters
    ----------
    connection
        Of `open_results`.
    query : str
        One ``SELECT`` from ``results``.

    Rows come as they are asked for; other questions may be put meanwhile.

    Raises
    ------
    CohortError
        If it is no ``SELECT``, or DuckDB cannot answer it.
    """
    import duckdb

    try:
        connection = connection.cursor()  # a second question would end the rows of the first
        statements = connection.extract_statements(query)
        kinds = [statement.type for statement in statements]
        if kinds != [duckdb.StatementType.SELECT]:
            found = ", ".join(kind.name for kind in kinds) or "nothing"
            raise CohortError(
                f"the question is {found}; one SELECT is needed, for example "
                "SELECT \"case\", score FROM results WHERE verdict = 'anomalous'."
            )
        result = connection.execute(statements[0])
    except duckdb.Error as error:
        raise CohortError(
            f"DuckDB cannot answer: {error}. The table is results, with the columns "
            f'{", ".join(COLUMNS)}; "case" needs its quotes, as it is a word of SQL.'
        ) from error
    return [column[0] for column in result.description], _rows(result)


def _rows(result: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while rows := result.fetchmany(1000):
        yield from rows


def _fill(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Make the table ``results`` from what there is in a folder."""
    planned = (folder / "plan.jsonl").is_file()
    if (folder / RESULTS).is_file() and _read_table(connection, folder, final=planned):
        return
    if planned:
        _read_ledger(connection, folder)
    elif (folder / "scores.json").is_file():
        _make(connection)
        insert_report(connection, folder, COLUMNS)
    else:
        raise CohortError(
            f"{folder} has no plan.jsonl, no {RESULTS} and no scores.json; the output folder of "
            "`mcmiad screen` or `mcmiad infer` is needed."
        )


def _make(connection: duckdb.DuckDBPyConnection) -> None:
    declared = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
    connection.execute(f"CREATE OR REPLACE TABLE results ({declared})")


def _read_ledger(connection: duckdb.DuckDBPyConnection, out: str | Path) -> None:
    read_plan(connection, out)
    read_events(
        connection, out, {name: kind for name, kind in COLUMNS.items() if name not in FROM_LEDGER}
    )
    _make(connection)
    connection.execute(FROM_EVENTS)
    connection.execute("DROP TABLE events; DROP TABLE plan")


def _read_table(connection: duckdb.DuckDBPyConnection, folder: Path, *, final: bool) -> bool:
    """Take the table that was collected; if it has to be final, only one without pending studies.

    A study that has an end keeps it: nothing that comes later changes a final table.
    """
    with reachable(folder) as link:
        table = [f"{link}/{RESULTS}"]
        pending = "SELECT count(*) FROM read_parquet(?) WHERE status = 'pending'"
        if final and connection.execute(pending, table).fetchall() != [(0,)]:
            return False
        _make(connection)
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        connection.execute(f"INSERT INTO results SELECT {names} FROM read_parquet(?)", table)
    return True


def _write(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    with reachable(path.parent) as link:
        target = f"{link}/{path.name}".replace("'", "''")
        connection.execute(
            f"COPY (FROM results ORDER BY number) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
        )
