"""Writing a report: its pages beside the results, in place of those of an earlier report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from mcmiad_monai.errors import escaped, root_message
from mcmiad_monai.files.writing import write_text
from mcmiad_monai.report.html import MARK
from mcmiad_monai.report.images import Images
from mcmiad_monai.report.index import index_page
from mcmiad_monai.report.names import shown_names, write_key
from mcmiad_monai.report.rows import Cohort, ReportError
from mcmiad_monai.report.study import Place, study_page

logger = logging.getLogger(__name__)

#: Folder of the pages of studies.
STUDIES = "studies"
#: Pages that are made where nothing else is asked for.
MOST_PAGES = 100
#: Bytes in which a page of ours names itself.
HEAD = 400


@dataclass
class Report:
    """What was written.

    Attributes
    ----------
    index : Path
        The page to open.
    studies : int
        In the cohort.
    pages : int
        Of studies.
    left_out : int
        Studies that have files, and no page because of the limit.
    failed : dict
        Case → why its page could not be made.
    """

    index: Path
    studies: int
    pages: int = 0
    left_out: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def write_report(
    cohort: Cohort,
    out: str | Path,
    *,
    sources: Sequence[Path] = (),
    image_name: str | None = None,
    studies: int = MOST_PAGES,
    pseudonymise: bool = False,
    key: Path | None = None,
    progress: bool = False,
) -> Report:
    """Write ``index.html`` and ``studies/<name>.html``, and remove pages of an earlier report.

    Parameters
    ----------
    cohort : Cohort
    out : path
        Folder of the report.
    sources, image_name
        Where the images are; see `Images`.
    studies : int
        Pages of studies, at most; the most anomalous ones get them.
    pseudonymise : bool
        Show S0001, S0002, … instead of names.
    key : path, optional
        Where to write which name stands for which study.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ReportError
        If `out` has an ``index.html`` that is none of ours; or a key is asked for and there are
        no pseudonyms.
    DiskFullError
        If there is no room.
    """
    folder, rows = Path(out), cohort.rows
    index = folder / "index.html"
    if key is not None and not pseudonymise:
        raise ReportError("a key is written for pseudonyms only: add --pseudonymise.")
    if index.exists() and not is_ours(index):
        raise ReportError(
            f"{index} is no report of mcmiad; it is kept. Name another folder (--out)."
        )
    names = shown_names(rows, pseudonymise=pseudonymise)
    able = [k for k, row in enumerate(rows) if row.folder is not None]
    chosen = able[:studies]
    report = Report(index, len(rows), left_out=len(able) - len(chosen))
    images = Images(sources if chosen else (), rows, image_name=image_name, organs=cohort.organs)
    pages: dict[int, tuple[str, str]] = {}
    for number, k in enumerate(tqdm(chosen, desc="pages", unit=" pages", disable=not progress)):
        beside = [
            _address(names[chosen[n]]) if 0 <= n < len(chosen) else None
            for n in (number - 1, number + 1)
        ]
        place = Place(names[k], number + 1, len(chosen), *beside)
        try:
            page = study_page(rows[k], images, place)
        except (OSError, ValueError, KeyError) as error:
            report.failed[rows[k].case] = root_message(error)
            logger.error("study %s has no page: %s", rows[k].case, root_message(error))
            continue
        write_text(folder / STUDIES / f"{names[k]}.html", page.html)
        pages[k] = f"{STUDIES}/{_address(names[k])}", page.thumbnail
    report.pages = len(pages)
    remove_pages(folder / STUDIES, keep={f"{names[k]}.html" for k in pages})
    if key is not None:
        write_key(key, rows, names)
    content = index_page(cohort, names, pages, left_out=report.left_out, pseudonymised=pseudonymise)
    write_text(index, content)
    return report


def _address(name: str) -> str:
    """The page of a study as a link in the folder of pages has it."""
    return quote(f"{name}.html")


def is_ours(page: Path) -> bool:
    """Whether a file is a page of a report."""
    with page.open("rb") as file:
        return MARK.encode() in file.read(HEAD)


def remove_pages(folder: Path, *, keep: set[str]) -> None:
    """Remove pages of an earlier report; they can show names that are not to be shown any more."""
    if not folder.is_dir():
        return
    for page in folder.glob("*.html"):
        if page.name not in keep and is_ours(page):
            page.unlink()
            logger.info("removed %s of an earlier report", escaped(page.name))
