"""Names that pages show instead of those of the studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mcmiad_monai.files.writing import write_csv
from mcmiad_monai.report.rows import Row

#: Digits of a pseudonym, at least.
DIGITS = 4


def shown_names(rows: Sequence[Row], *, pseudonymise: bool) -> list[str]:
    """Name of each row on the pages: its own, or S0001, S0002, … in the order of the rows."""
    if not pseudonymise:
        return [row.case for row in rows]
    digits = max(DIGITS, len(str(len(rows))))
    return [f"S{number:0{digits}d}" for number in range(1, len(rows) + 1)]


def write_key(path: str | Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Write which pseudonym stands for which study, as CSV that its owner alone can read."""
    target = Path(path)
    entries = [{"name": n, "case": row.case} for n, row in zip(names, rows, strict=True)]
    write_csv(target, entries)
    target.chmod(0o600)
