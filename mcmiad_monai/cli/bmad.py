"""The command ``mcmiad bmad``: the benchmark's data on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from mcmiad_monai.cli.console import FAILED, print_error, print_json
from mcmiad_monai.cli.options import Commands, add_command


def add_commands(commands: Commands) -> None:
    """Add the parsers."""
    bmad = add_command(commands, "bmad", None, "check or prepare BMAD, or write a small one")
    actions = bmad.add_subparsers(dest="action", required=True, metavar="ACTION")

    check = add_command(actions, "check", _check, "compare what is there with what should be there")
    check.add_argument("root", type=Path, help="folder with BMAD's sets, in any layout")
    check.add_argument("--verify", action="store_true", help="read every image and mask")
    check.add_argument(
        "--json",
        nargs="?",
        const=Path("-"),
        type=Path,
        metavar="FILE",
        help="print the report as JSON, or write it to a file",
    )

    prepare = add_command(actions, "prepare", _prepare, "make the brain or liver set from volumes")
    prepare.add_argument("what", choices=["brain", "liver"])
    prepare.add_argument("--brats", type=Path, help="folder of BraTS2021, for brain")
    prepare.add_argument("--btcv", type=Path, help="folder of BTCV, for liver")
    prepare.add_argument("--lits", type=Path, help="folder of LiTS, for liver")
    prepare.add_argument("--out", type=Path, required=True, help="new or empty folder")
    prepare.add_argument("--seed", type=int, default=0, help="seed of the patients that are drawn")
    prepare.add_argument(
        "--clean",
        action="store_true",
        help="without the flaws of the release: patients drawn, one HU window for both CT "
        "sources, no colour map, Ungood only with lesion",
    )

    phantom = add_command(actions, "phantom", _phantom, "write a small generated tree to try out")
    phantom.add_argument("out", type=Path, help="new or empty folder")
    phantom.add_argument(
        "--layout",
        default="official",
        choices=["official", "flat", "inverted", "archive", "ader"],
        help="how the folders are arranged",
    )
    phantom.add_argument("--seed", type=int, default=0, help="seed of the images")


def _check(options: argparse.Namespace) -> int:
    import json

    from mcmiad_monai.files.writing import write_text
    from mcmiad_monai.provenance import produced_with
    from mcmiad_monai.research.bmad.report import bmad_report
    from mcmiad_monai.research.bmad.sets import find_bmad

    report = bmad_report(find_bmad(options.root), verify=options.verify, progress=not options.quiet)
    content = {**report.to_dict(), **produced_with()}
    if options.json == Path("-"):
        print_json(content)
    else:
        print(report.text())
    if options.json not in (None, Path("-")):
        write_text(options.json, json.dumps(content, indent=1))
    return FAILED if report.problems else 0


def _prepare(options: argparse.Namespace) -> int:
    from mcmiad_monai.research.bmad.brain import prepare_brain
    from mcmiad_monai.research.bmad.liver import prepare_liver

    sources = ("brats",) if options.what == "brain" else ("btcv", "lits")
    missing = [f"--{name}" for name in sources if getattr(options, name) is None]
    if missing:
        raise ValueError(f"{options.what} is prepared from {' and '.join(missing)}: give a folder.")
    kept = {"clean": options.clean, "seed": options.seed}
    if options.what == "brain":
        found = prepare_brain(options.brats, options.out, **kept)
    else:
        found = prepare_liver(options.btcv, options.lits, options.out, **kept)
    for folder, count in sorted(found.counts.items()):
        print(f"{folder}\t{count}")
    for note in found.notes:
        print(f"note: {note}")
    if not found.failures:
        return 0
    reasons = "".join(f"\n  {name}: {error}" for name, error in found.failures.items())
    print_error(f"{len(found.failures)} volumes could not be used:{reasons}")
    return FAILED


def _phantom(options: argparse.Namespace) -> None:
    from mcmiad_monai.research.bmad.phantom import write_bmad_phantom

    print(write_bmad_phantom(options.out, layout=options.layout, seed=options.seed))
