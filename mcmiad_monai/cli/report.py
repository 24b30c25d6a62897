"""The command ``report``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from mcmiad_monai.cli.console import FAILED, OK, print_json
from mcmiad_monai.cli.options import Commands, add_command, add_json, whole
from mcmiad_monai.errors import escaped

logger = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    """Add the parser."""
    report = add_command(
        commands, "report", _report, "write pages to open in a browser: a cohort and its studies"
    )
    report.add_argument("folder", type=Path, help="folder that mcmiad infer or screen wrote")
    report.add_argument("--out", type=Path, help="folder of the report (default: the same)")
    report.add_argument(
        "--source",
        type=Path,
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="where the studies are, to show the images below the heat",
    )
    report.add_argument(
        "--image-name",
        metavar="WORD",
        help="word in the file names of the images, where a study has several, e.g. flair",
    )
    report.add_argument(
        "--studies",
        type=whole,
        default=100,
        metavar="N",
        help="pages of studies, the most anomalous first (default: 100)",
    )
    report.add_argument(
        "--pseudonymise",
        action="store_true",
        help="show S0001, S0002, … instead of the names of the studies",
    )
    report.add_argument(
        "--key", type=Path, metavar="FILE", help="write which pseudonym is which study, as CSV"
    )
    add_json(report)


def _report(options: argparse.Namespace) -> int:
    from mcmiad_monai.report.rows import read_cohort
    from mcmiad_monai.report.write import write_report

    done = write_report(
        read_cohort(options.folder),
        options.out or options.folder,
        sources=options.source,
        image_name=options.image_name,
        studies=options.studies,
        pseudonymise=options.pseudonymise,
        key=options.key,
        progress=not options.quiet,
    )
    if options.json:
        told = {"index": done.index, "studies": done.studies, "pages": done.pages}
        print_json({**told, "left_out": done.left_out, "failed": done.failed})
        return FAILED if done.failed else OK
    counts = [f"{done.studies} studies", f"{done.pages} pages"]
    counts += [f"{done.left_out} studies without a page (--studies)"] if done.left_out else []
    counts += [f"{len(done.failed)} pages failed"] if done.failed else []
    logger.info("%s", ", ".join(counts))
    print(escaped(str(done.index)))
    return FAILED if done.failed else OK
