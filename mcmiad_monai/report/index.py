"""The page of a cohort: totals, scores beside those of normals, and a list to search and sort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcmiad_monai.report.findings import terms
from mcmiad_monai.report.histogram import histograms
from mcmiad_monai.report.html import Html, document, fill, join, resource
from mcmiad_monai.report.rows import Cohort, Row
from mcmiad_monai.report.words import (
    DISCLAIMER,
    STATES,
    kind_of_reason,
    warning_name,
    warning_text,
)

#: Significant digits of the figures in the list.
DIGITS = 4


def index_page(
    cohort: Cohort,
    names: Sequence[str],
    pages: Mapping[int, tuple[str, str]],
    *,
    left_out: int = 0,
    pseudonymised: bool = False,
) -> str:
    """Make the page of a cohort.

    Parameters
    ----------
    cohort : Cohort
    names : sequence of str
        Of its rows, as pages show them.
    pages : mapping of int to (str, str)
        Number of a row → address of its page, and of its small picture.
    left_out : int
        Studies that have files and no page.
    pseudonymised : bool
        Reasons are told without their own words, which can hold names and paths.
    """
    rows = cohort.rows
    counts = Counter(row.state for row in rows)
    data = columns(rows, names, pages, pseudonymised=pseudonymised)
    data["histograms"] = histograms(rows, cohort.calibration)
    notes = list(cohort.notes)
    if pages or left_out:
        more = f"; {left_out} more have files and no page (--studies)" if left_out else ""
        notes.append(f"{len(pages)} studies have a page of their own{more}.")
    warned = Counter(warning for row in rows for warning in row.warnings)
    body = fill(
        resource("pages/index.html"),
        total=len(rows),
        states=_states(counts),
        warnings=_notices([(f"{n} × {warning_text(w)}", "warn") for w, n in warned.most_common()]),
        notes=_notices([(note, "note") for note in notes]),
        facts=terms(list(cohort.facts.items())),
        disclaimer=DISCLAIMER,
    )
    return document(
        title=f"Cohort of {len(rows)} studies",
        body=body,
        styles=("pages/base.css", "pages/index.css"),
        scripts=("pages/histogram.js", "pages/index.js"),
        data=data,
    )


def columns(
    rows: Sequence[Row],
    names: Sequence[str],
    pages: Mapping[int, tuple[str, str]],
    *,
    pseudonymised: bool = False,
) -> dict[str, Any]:
    """The list as columns, which are smaller than rows; repeated texts are kept once."""
    states, reasons, warnings = Texts(), Texts(), Texts()
    for state in STATES:
        states.number(state)
    column: dict[str, list[Any]] = {
        key: [] for key in ("state", "score", "ml", "hottest", "above", "slices", "warning")
    }
    told: dict[int, int] = {}
    for k, row in enumerate(rows):
        column["state"].append(states.number(row.state))
        for key, value in (("score", row.score), ("ml", row.anomaly_ml), ("hottest", row.hottest)):
            column[key].append(None if value is None else float(f"{value:.{DIGITS}g}"))
        column["above"].append(row.slices_above)
        column["slices"].append(row.slices)
        named = ", ".join(map(warning_name, row.warnings))
        column["warning"].append(warnings.number(named) if named else None)
        if row.error:
            told[k] = reasons.number(kind_of_reason(row.error) if pseudonymised else row.error)
    return {
        "names": list(names),
        **column,
        "labels": [STATES[state][0] for state in states.all],
        "states": states.all,
        "warnings": warnings.all,
        "reasons": reasons.all,
        "reason": told,
        "pages": {k: list(page) for k, page in pages.items()},
    }


class Texts:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Number of a text, a new one if it was not there."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def all(self) -> list[str]:
        """The texts in the order of their numbers."""
        return list(self._numbers)


def _states(counts: Mapping[str, int]) -> Html:
    """A button for each state that occurs, which filters the list; the first three always."""
    one = (
        '<button class="count $state" data-state="$number" aria-pressed="false" title="$meaning">'
        "<b>$count</b><span>$label</span></button>"
    )
    return join(
        [
            fill(
                one,
                state=state,
                number=number,
                meaning=meaning,
                count=f"{counts.get(state, 0):,}",
                label=label,
            )
            for number, (state, (label, meaning)) in enumerate(STATES.items())
            if counts.get(state) or number < 3
        ]
    )


def _notices(told: Iterable[tuple[str, str]]) -> Html:
    one = '<p class="notice $kind" role="note">$text</p>'
    return join([fill(one, kind=kind, text=text) for text, kind in told])
