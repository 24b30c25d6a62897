"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Cell of a figure that is undefined or was not measured.
MISSING = "–"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; a bar in a cell is escaped."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *lines]
