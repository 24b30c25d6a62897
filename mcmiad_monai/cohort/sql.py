r"""The ledger as tables of DuckDB, in bounded memory however many studies there are.

Lines are read as text first. DuckDB's own reader of JSON drops a line with a lone surrogate, which
is how JSON writes the bytes of a file name that is no UTF-8; `mended` makes text of it, ``\udc80``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

#: Memory of DuckDB; what does not fit goes to the temporary folder.
MEMORY = "1GB"
#: Most threads of DuckDB: each has buffers of its own, and disks feed no more.
THREADS = 4

#: Columns of a study in the plan.
STUDY = {
    "number": "BIGINT",
    "case": "VARCHAR",
    "image": "VARCHAR",
    "patient": "VARCHAR",
    "modality": "VARCHAR",
}
#: Columns that every line of the records has.
EVENT = {
    "event": "VARCHAR",
    "number": "BIGINT",
    "worker": "VARCHAR",
    "time": "DOUBLE",
    "round": "BIGINT",
}

#: Of a study that is done anew, only the lines of its last round count.
LAST_ROUND = """
DELETE FROM events USING (
    SELECT number, max(round) AS last FROM events WHERE event = 'again' GROUP BY number
) AS anew
WHERE events.number = anew.number AND coalesce(events.round, 0) < anew.last
"""

MACROS = r"""
-- A line of JSON whose lone surrogates are text. A doubled backslash is hidden first, so that each
-- \u left is an escape; then the pairs, which are characters beyond 16 bits.
CREATE MACRO mended(line) AS
    regexp_replace(regexp_replace(regexp_replace(
        replace(line, '\\', '\u005c'),
        '\\u(d[89ab]..)\\u(d[c-f]..)', '\\#\1#\2', 'g'),
        '\\u(d[89a-f]..)', '\\\\u\1', 'g'),
        '\\#(....)#(....)', '\\u\1\\u\2', 'g');

-- NULL for a line that was cut off or is no JSON.
CREATE MACRO parsed(line) AS coalesce(TRY_CAST(line AS JSON), TRY_CAST(mended(line) AS JSON));

CREATE MACRO lines_of(files) AS TABLE
    SELECT line FROM read_csv(files, columns = {'line': 'VARCHAR'}, header = false,
        auto_detect = false, delim = '\x1f', quote = '', escape = '', ignore_errors = true);
""".replace(r"\x1f", "\x1f")


class CohortError(ValueError):
    """A folder is not one of a cohort, or what is asked of its results cannot be answered."""


@contextmanager
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, which spills into a folder that goes with it."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="mcmiad-") as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY,
            "threads": min(THREADS, len(os.sched_getaffinity(0))),
            "temp_directory": spill,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,  # nothing is fetched
            "python_enable_replacements": False,  # a table of a query is no variable of Python
        }
        with duckdb.connect(config=settings) as connection:
            connection.execute(MACROS)
            yield connection


@contextmanager
def reachable(folder: str | Path) -> Iterator[str]:
    """A path of a folder for SQL: one without ``*`` and ``[``, and UTF-8 whatever the folder's."""
    with tempfile.TemporaryDirectory(prefix="mcmiad-") as place:
        link = Path(place) / "cohort"
        link.symlink_to(Path(folder).absolute(), target_is_directory=True)
        yield str(link)


def read_events(
    connection: duckdb.DuckDBPyConnection, out: str | Path, row: Mapping[str, str] | None = None
) -> None:
    """Make the table ``events`` of the lines of all records; those cut off have no ``event``.

    Parameters
    ----------
    out : path
        Folder of the cohort; workers may be writing there.
    row : mapping, optional
        Columns of ``end`` lines that are wanted beside `EVENT`, name → type.
    """
    columns = {**EVENT, **(row or {})}
    declared = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    connection.execute(f"CREATE OR REPLACE TABLE events ({declared})")
    # a file to which nothing was written yet tells nothing, and DuckDB refuses a pattern without
    # a file
    if any(Path(out).glob("records/*.jsonl")):
        with reachable(out) as folder:
            connection.execute(
                f"""
                INSERT INTO events
                SELECT unnest(json_transform(parsed(line), {structure(columns)}))
                FROM lines_of(?)
                """,
                [f"{folder}/records/*.jsonl"],
            )
        connection.execute(LAST_ROUND)


def read_plan(connection: duckdb.DuckDBPyConnection, out: str | Path) -> None:
    """Make the table ``plan`` of the columns `STUDY`.

    Raises
    ------
    CohortError
        If the folder has no plan.
    """
    if not (Path(out) / "plan.jsonl").is_file():
        raise CohortError(
            f"{out} has no plan.jsonl; a folder that `mcmiad screen --out` wrote is needed."
        )
    with reachable(out) as folder:
        connection.execute(
            f"""
            CREATE OR REPLACE TABLE plan AS
            SELECT unnest(json_transform(parsed(line), {structure(STUDY)}))
            FROM lines_of(?)
            """,
            [f"{folder}/plan.jsonl"],
        )


def structure(columns: Mapping[str, str]) -> str:
    """Columns as `json_transform` takes them."""
    return "'{" + ", ".join(f'"{name}": "{kind}"' for name, kind in columns.items()) + "}'"
