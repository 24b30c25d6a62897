"""``mcmiad``: the short way for people. Every command is a few lines over the rooms of the package.

Nothing heavy is imported before a command runs, so that ``mcmiad --help`` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.cli.research import add_commands
from mcmiad_monai.modality import MODALITIES

DEFAULT_BUNDLE = "brain_mri_anomaly"

#: Commands that cannot do without MONAI, whatever they are given.
BUNDLE_COMMANDS = frozenset({"demo", "train", "evaluate", "infer"})

SPINS = 1000
"""How often a thread of GNU OpenMP looks for the others before it sleeps: some microseconds."""


def _override(text: str) -> tuple[str, Any]:
    """``key=value`` with a YAML value, as ``python -m monai.bundle`` reads it."""
    import yaml

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, e.g. max_epochs=50.")
    try:
        return key, ast.literal_eval(
            value
        )  # numbers as Python writes them: YAML takes 1e-3 for text
    except (ValueError, SyntaxError):
        pass
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        told = str(error).replace("\n", " ")
        raise argparse.ArgumentTypeError(f"{text!r} is not a YAML value: {told}") from error


def _get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mcmiad", description="Anomaly heatmaps for radiology, learned from healthy studies."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show debug messages")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def of_modality(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--modality",
            choices=sorted(MODALITIES),
            help="what the studies are, for a unified bundle where nothing else tells",
        )

    def overridable(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--set",
            dest="overrides",
            metavar="KEY=VALUE",
            type=_override,
            action="append",
            default=[],
            help="override a line of the bundle's configuration; may be repeated",
        )

    demo = command("demo", _demo, "the whole main job on generated phantom studies")
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    demo.add_argument("--seed", type=int, default=0)

    cases = command("cases", _cases, "list the studies found in a source")
    cases.add_argument("source", type=Path, help="file, folder or datalist JSON")
    cases.add_argument("--split", default="all", choices=["train", "val", "test", "all"])

    train = command("train", _train, "train a bundle on healthy studies")
    train.add_argument("source", type=Path, help="folder of studies or datalist JSON")
    train.add_argument("--out", type=Path, required=True, help="folder of the trained bundle")
    train.add_argument("--bundle", default=DEFAULT_BUNDLE, help="shipped bundle to start from")
    train.add_argument("--weights", help="pretrained, a weights file, or random")
    train.add_argument("--text-prior", help="open_clip, hashing, or a prior file")
    train.add_argument("--epochs", type=int, help="epochs to train")
    train.add_argument("--resume", action="store_true", help="continue from models/last.pt")
    train.add_argument("--tracking", help="mlflow, or a MONAI tracking settings file")
    of_modality(train)
    overridable(train)

    evaluate = command("evaluate", _evaluate, "AUROC of a trained bundle on studies with masks")
    evaluate.add_argument("source", type=Path)
    evaluate.add_argument("--bundle", type=Path, required=True, help="trained bundle")
    evaluate.add_argument("--out", type=Path, help="output folder (the bundle's eval by default)")
    of_modality(evaluate)
    overridable(evaluate)

    infer = command("infer", _infer, "heatmaps, masks and scores of studies")
    infer.add_argument("source", type=Path, help="study, folder of studies or datalist JSON")
    infer.add_argument("--bundle", type=Path, required=True, help="trained bundle")
    infer.add_argument("--out", type=Path, required=True, help="output folder")
    of_modality(infer)
    overridable(infer)

    export = command("export", _export, "write a model as ONNX or TorchScript, thresholds inside")
    export.add_argument("model", type=Path, help="a packaged model.pt")
    export.add_argument("out", type=Path, help="file that ends in .onnx or .ts")

    label = command("label-app", _label_app, "lay out a MONAI Label app that serves bundles")
    label.add_argument("directory", type=Path, help="folder of the app")
    label.add_argument(
        "--bundle",
        action="append",
        help="trained bundle, or the name of a shipped one to be trained by the app; may be "
        "repeated; all shipped ones if left",
    )

    info = command("info", _info, "parameters and FLOPs of encoder and head, counted")
    info.add_argument("--model", type=Path, help="a packaged model.pt; the default network if left")
    info.add_argument("--encoder", default="tf_efficientnet_b4.aa_in1k")

    add_commands(command, _override)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one message and exit code 2.

    Parameters
    ----------
    args : sequence of str, optional
        The command line of this process by default, which is then taken to be the command's own.
    """
    options = _get_parser().parse_args(args)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        if args is None and options.command in BUNDLE_COMMANDS:
            _wait_briefly()
            _import_monai()
        options.run(options)
    except (ValueError, RuntimeError, OSError) as error:
        if options.verbose:
            raise
        from mcmiad_monai.errors import unwrap

        print(f"mcmiad: {unwrap(error)}", file=sys.stderr)
        return 2
    return 0


def _wait_briefly() -> None:
    """Let threads that share a product spin for microseconds, then sleep, until all are there.

    Without spinning a training step is slower on an idle machine; with more of it, where another
    process or our own reader and writer want a core (``GOMP_SPINCOUNT=0`` and ``10000`` before
    ``benchmarks/training.py``). OpenMP reads the variable once, so it is set before PyTorch is
    loaded; a user's own choice stands.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def _import_monai() -> None:
    """Import MONAI without the garbage collector, and keep what came with it out of its way.

    MONAI imports all of itself and whatever optional package is installed: thousands of modules
    that stay to the end of the process. The collector would go through them again and again, and
    once more at exit, for a third of the time of a short run (``benchmarks/startup.py``). Only
    where the process is the command's own: elsewhere the collector is the caller's.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("monai.bundle")
    finally:
        if was_on:
            gc.enable()
    gc.freeze()


def _demo(options: argparse.Namespace) -> None:
    from mcmiad_monai.cli.demo import run_demo

    run_demo(options.out, seed=options.seed)


def _cases(options: argparse.Namespace) -> None:
    from mcmiad_monai.data.cases.find import find_cases

    for case in find_cases(options.source, split=options.split):
        mask = case.get("label") or "-"
        print(f"{case['case']}\t{case['image']}\t{mask}")


def _train(options: argparse.Namespace) -> None:
    from mcmiad_monai.bundle import copy_bundle, open_workflow

    root = copy_bundle(options.bundle, options.out)
    given = {
        "dataset_dir": str(options.source.resolve()),
        "weights": options.weights,
        "text_prior": options.text_prior,
        "max_epochs": options.epochs,
        "study_modality": options.modality,
        "resume": str(root.resolve() / "models" / "last.pt") if options.resume else None,
        **dict(options.overrides),
    }
    overrides = {k: v for k, v in given.items() if v is not None}
    open_workflow(root, "train", overrides, tracking=options.tracking).run()
    print(f"trained bundle: {root}")


def _evaluate(options: argparse.Namespace) -> None:
    from mcmiad_monai.bundle import open_workflow

    overrides = {**_studies(options), **dict(options.overrides)}
    if options.out:
        overrides["output_dir"] = str(options.out.resolve())
    workflow = open_workflow(options.bundle, ("train", "evaluate"), overrides)
    workflow.run()
    for name, value in workflow.parser.get_parsed_content("report").report["metrics"].items():
        print(f"{name}\t{'undefined' if value is None else f'{value:.4f}'}")


def _infer(options: argparse.Namespace) -> None:
    from mcmiad_monai.bundle import open_workflow

    overrides = {
        **_studies(options),
        "output_dir": str(options.out.resolve()),
        **dict(options.overrides),
    }
    open_workflow(options.bundle, "inference", overrides).run()


def _studies(options: argparse.Namespace) -> dict[str, Any]:
    """Overrides that say which studies are meant, and what they are."""
    told = {} if options.modality is None else {"study_modality": options.modality}
    return {"dataset_dir": str(options.source.resolve()), **told}


def _export(options: argparse.Namespace) -> None:
    from mcmiad_monai.networks.package import load_package
    from mcmiad_monai.runtime.export import export_model

    print(f"exported: {export_model(load_package(options.model), options.out)}")


def _label_app(options: argparse.Namespace) -> None:
    from mcmiad_monai.bundle import shipped_bundles
    from mcmiad_monai.monailabel.layout import lay_out_app

    shipped = shipped_bundles()
    app = lay_out_app(
        options.directory, [shipped.get(name, name) for name in options.bundle or shipped]
    )
    print(f"app: {app}\nserve it with: monailabel start_server --app {app} --studies DIR")


def _info(options: argparse.Namespace) -> None:
    from mcmiad_monai.networks.info import print_info

    print_info(model=options.model, encoder=options.encoder)


if __name__ == "__main__":
    sys.exit(main())
