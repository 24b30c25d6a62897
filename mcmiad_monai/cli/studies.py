"""The commands ``cases``, ``infer`` and ``evaluate``."""

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
    add_overrides,
    add_source,
)
from mcmiad_monai.cli.workflows import open_bundle


def add_commands(commands: Commands) -> None:
    """Add the parsers."""
    cases = add_command(commands, "cases", _cases, "list the studies found in a source")
    add_source(cases, "file, folder or datalist JSON")
    cases.add_argument("--split", default="all", choices=SPLITS, help="which studies")
    cases.add_argument(
        "--explain", action="store_true", help="also list the files that were not read, and why"
    )
    add_json(cases)

    infer = add_command(commands, "infer", _infer, "write heatmaps, masks and scores of studies")
    add_source(infer, "study, folder of studies or datalist JSON")
    infer.add_argument("--bundle", type=Path, required=True, help="trained bundle")
    infer.add_argument("--out", type=Path, required=True, help="output folder")
    add_modality(infer)
    add_computing(infer)
    add_json(infer)
    add_overrides(infer, "override a line of the bundle's inference.yaml")

    evaluate = add_command(commands, "evaluate", _evaluate, "measure a model on studies with masks")
    add_source(evaluate, "studies with lesion masks: folder or datalist JSON")
    evaluate.add_argument("--bundle", type=Path, required=True, help="trained bundle")
    evaluate.add_argument("--out", type=Path, help="output folder (default: the bundle's eval)")
    add_modality(evaluate)
    add_computing(evaluate)
    add_json(evaluate)
    add_overrides(evaluate, "override a line of the bundle's evaluate.yaml")


def _cases(options: argparse.Namespace) -> None:
    from mcmiad_monai.data.cases.explain import explain
    from mcmiad_monai.data.cases.find import find_cases

    cases = find_cases(options.source, options.split, image_name=options.image_name)
    left_out = (
        explain(options.source, options.split, image_name=options.image_name)
        if options.explain
        else {}
    )
    if options.json:
        reasons = [{"path": str(path), "reason": reason} for path, reason in left_out.items()]
        print_json({"cases": cases, "not_read": reasons} if options.explain else cases)
        return
    for case in cases:
        print(f"{case['case']}\t{case['image']}\t{case.get('label') or '-'}")
    if options.explain:
        print(f"\n{len(cases)} studies found, {len(left_out)} files not read")
        for path, reason in left_out.items():
            print(f"{path}\t{reason}")


def _infer(options: argparse.Namespace) -> None:
    out = {"output_dir": str(options.out.resolve())}
    open_bundle(options, options.bundle, ["inference"], out).run()


def _evaluate(options: argparse.Namespace) -> None:
    out = {"output_dir": str(options.out.resolve())} if options.out else {}
    workflow = open_bundle(options, options.bundle, ["train", "evaluate"], out)
    workflow.run()
    report = workflow.parser.get_parsed_content("report").report
    if options.json:
        print_json(report)
        return
    for name, value in report["metrics"].items():
        print(f"{name}\t{'undefined' if value is None else f'{value:.4f}'}")
