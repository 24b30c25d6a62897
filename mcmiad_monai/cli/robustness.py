"""The commands ``mcmiad stress`` and ``mcmiad subgroups``: robustness and fairness."""

from __future__ import annotations

import argparse
from pathlib import Path

from mcmiad_monai.cli.console import print_json
from mcmiad_monai.cli.options import (
    SPLITS,
    Commands,
    add_command,
    add_computing,
    add_json,
    add_modality,
    add_source,
    chosen_device,
    numbers,
)


def add_commands(commands: Commands) -> None:
    """Add the parsers."""
    stress = add_command(
        commands, "stress", _stress, "measure a model on images of decreasing quality"
    )
    add_source(stress, "studies with lesion masks: folder or datalist JSON")
    stress.add_argument("--bundle", type=Path, required=True, help="trained bundle, or a model.pt")
    stress.add_argument("--out", type=Path, required=True, help="finished studies in it are kept")
    stress.add_argument("--split", default="test", choices=SPLITS, help="which studies")
    stress.add_argument("--corruptions", help="names with commas (default: all of the modality)")
    stress.add_argument(
        "--severities", type=numbers, default=[1, 2, 3, 4, 5], help="from 1 to 5, e.g. 1,3,5"
    )
    stress.add_argument("--attributes", type=Path, help="CSV of subgroups: also tables of these")
    stress.add_argument("--seed", type=int, default=0, help="seed of the corruptions")
    add_modality(stress)
    add_computing(stress)
    add_json(stress)

    groups = add_command(
        commands, "subgroups", _subgroups, "figures by scanner, site, sex or age, from a CSV"
    )
    groups.add_argument("scores", type=Path, help="studies.csv of an evaluation, or scores.csv")
    groups.add_argument(
        "--attributes", type=Path, required=True, help="CSV with a column case and the attributes"
    )
    groups.add_argument("--out", type=Path, required=True, help="output folder")
    groups.add_argument("--threshold", type=float, help="of volumes (default: the model's)")
    add_json(groups)


def _stress(options: argparse.Namespace) -> None:
    from mcmiad_monai.data.cases.find import find_cases
    from mcmiad_monai.files.room import prepare_output
    from mcmiad_monai.research.robustness.stress import require_complete, run_stress
    from mcmiad_monai.research.robustness.subgroups import subgroup_report

    prepare_output(options.out)
    model = options.bundle / "models" / "model.pt" if options.bundle.is_dir() else options.bundle
    report = run_stress(
        model,
        find_cases(options.source, options.split, image_name=options.image_name),
        out=options.out,
        corruptions=options.corruptions.split(",") if options.corruptions else None,
        severities=options.severities,
        seed=options.seed,
        modality=options.modality,
        device=chosen_device(options),
        progress=not options.quiet,
    )
    if options.attributes:
        subgroup_report(options.out / "studies.csv", options.attributes, out=options.out)
    if options.json:
        print_json(report)
    else:
        print((options.out / "stress.md").read_text(encoding="utf-8"))
    require_complete(report)


def _subgroups(options: argparse.Namespace) -> None:
    from mcmiad_monai.research.robustness.subgroups import subgroup_report

    report = subgroup_report(
        options.scores, options.attributes, out=options.out, threshold=options.threshold
    )
    if options.json:
        print_json(report)
    else:
        print((options.out / "subgroups.md").read_text(encoding="utf-8"))
