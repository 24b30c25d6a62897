"""What a ledger says: which studies are to be done, and how many have which status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.cohort.living import lives
from mcmiad_monai.cohort.sql import CohortError, database, read_events, read_plan

if TYPE_CHECKING:
    import duckdb

Study = dict[str, Any]
#: What becomes of a study, in the order of tables and messages.
STATUS = ("done", "refused", "failed", "quarantined", "in progress", "pending")

#: Begins of studies that have no end, one row a study and worker: how many were neither taken back
#: nor ended, and whether the last of them is the last study that the worker has begun.
OPEN = """
CREATE OR REPLACE TABLE open AS
WITH begun AS (
    SELECT number, worker,
           count(*) FILTER (event = 'begin') - count(*) FILTER (event = 'stopped') AS begins,
           max(time) FILTER (event = 'begin') AS since
    FROM events
    WHERE number NOT IN (SELECT number FROM events WHERE event = 'end' AND number IS NOT NULL)
    GROUP BY number, worker
), newest AS (
    SELECT worker, max(time) AS since FROM events WHERE event = 'begin' GROUP BY worker
)
SELECT begun.*, begun.since = newest.since AS newest, 'ended' AS life
FROM begun JOIN newest USING (worker)
WHERE begins > 0
"""


def todo(out: str | Path, shard: tuple[int, int] = (0, 1)) -> Iterator[tuple[Study, int]]:
    """Studies without an end, each with the number of workers that died of it.

    The records are read once, at the first study. Then the plan is read line by line, so that there
    are no more studies in memory than those with deaths.

    Parameters
    ----------
    out : path
        Folder of the cohort.
    shard : tuple of int
        ``(i, n)``: every n-th study of the plan, from the i-th.

    Yields
    ------
    study : dict
        The line of the plan.
    deaths : int
        Workers that began it and neither ended it nor were asked to stop.

    In the order of the plan, those with deaths last, the fewest first. A study that a living
    process of this host has begun is left out: it is being done.

    Raises
    ------
    CohortError
        If the folder has no plan.
    """
    with database() as connection:
        read_events(connection, out)
        find_open(connection)
        ended = _numbers(connection, "FROM events WHERE event = 'end'", shard)
        running = _numbers(connection, "FROM open WHERE life = 'lives'", shard)
        deaths = dict(
            connection.execute(
                "SELECT number, sum(begins)::BIGINT FROM open WHERE life <> 'lives' GROUP BY number"
            ).fetchall()
        )
    suspects = []
    for study in _planned(out, shard):
        number = study["number"]
        if number in ended or number in running:
            continue
        if number in deaths:
            suspects.append((deaths[number], number, study))
        else:
            yield study, 0
    for count, _, study in sorted(suspects, key=lambda suspect: suspect[:2]):
        yield study, count


def counts(out: str | Path) -> dict[str, int]:
    """How many studies have which status, all of `STATUS`; together they are the plan.

    A study is in progress where a worker has begun it, not ended it, and is not known to be dead:
    of workers on other hosts it is not known.

    Raises
    ------
    CohortError
        If the folder has no plan.
    """
    with database() as connection:
        read_plan(connection, out)
        read_events(connection, out, {"status": "VARCHAR"})
        find_open(connection)
        found = connection.execute(
            """
            WITH ended AS (
                SELECT number, arg_min(status, (time, worker)) AS status
                FROM events WHERE event = 'end' GROUP BY number
            ), running AS (
                SELECT DISTINCT number, 'in progress' AS status FROM open WHERE life <> 'ended'
            )
            SELECT coalesce(ended.status, running.status, 'pending') AS status, count(*)
            FROM plan LEFT JOIN ended USING (number) LEFT JOIN running USING (number)
            GROUP BY ALL
            """
        ).fetchall()
    return dict.fromkeys(STATUS, 0) | dict(found)


def find_open(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the table ``open`` of ``events``: begins that came to no end.

    Its column ``life`` says of each whether the worker is still at it: ``lives``, ``unknown`` (of
    another host), or ``ended``, as of each begin but a worker's last one.
    """
    connection.execute(OPEN)
    last = connection.execute("SELECT number, worker, since FROM open WHERE newest").fetchall()
    for number, worker, since in last:
        if (alive := lives(worker, since)) is not False:
            connection.execute(
                "UPDATE open SET life = ? WHERE number = ? AND worker = ?",
                ["unknown" if alive is None else "lives", number, worker],
            )


def _numbers(connection: duckdb.DuckDBPyConnection, query: str, shard: tuple[int, int]) -> set[int]:
    """Numbers of studies of a shard, by a query."""
    part, parts = shard
    result = connection.execute(f"SELECT number FROM ({query}) WHERE number % {parts} = {part}")
    numbers: set[int] = set()
    while rows := result.fetchmany(10_000):
        numbers.update(number for (number,) in rows)
    return numbers


def _planned(out: str | Path, shard: tuple[int, int]) -> Iterator[Study]:
    """Studies of a shard, as the plan has them."""
    part, parts = shard
    path = Path(out) / "plan.jsonl"
    if not path.is_file():
        raise CohortError(f"{out} has no plan.jsonl; it is made before studies are done.")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            study = json.loads(line)
            if study["number"] % parts == part:
                yield study
