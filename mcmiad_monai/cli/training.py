"""The commands ``train``, ``export``, ``verify``, ``info``, ``label-app`` and ``demo``."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from mcmiad_monai.cli.console import FAILED, OK, print_json, report_not_read
from mcmiad_monai.cli.options import (
    METHODS,
    PRESETS,
    Commands,
    add_command,
    add_computing,
    add_json,
    add_modality,
    add_overrides,
    add_source,
)
from mcmiad_monai.cli.workflows import open_training
from mcmiad_monai.errors import escaped

DEFAULT_BUNDLE = "brain_mri_anomaly"
#: Bytes of two checkpoints and two model files of the default method, the old and the new one.
TRAINING_ROOM = 500_000_000
#: Where a finished bundle is trained afresh: it stays as it is until the new one is complete.
AFRESH = ".new"


def add_commands(commands: Commands) -> None:
    """Add the parsers."""
    train = add_command(commands, "train", _train, "train a bundle on healthy studies")
    add_source(train, "folder of studies or datalist JSON")
    train.add_argument("--out", type=Path, required=True, help="folder of the trained bundle")
    train.add_argument("--bundle", default=DEFAULT_BUNDLE, help="shipped bundle to start from")
    train.add_argument("--preset", choices=PRESETS, help="settings of the method")
    train.add_argument("--method", choices=METHODS, help="what is trained (default: both)")
    train.add_argument(
        "--score", help="auto, head, memory-cosine, memory-l2, intensity, or sums: A+B"
    )
    train.add_argument("--encoder", help="auto, a model of timm, open_clip:MODEL, or A+B")
    train.add_argument("--weights", help="pretrained, packaged, a weights file, random, or A+B")
    train.add_argument("--text-prior", help="open_clip, hashing, or a prior file")
    train.add_argument("--epochs", type=int, help="epochs to train")
    existing = train.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue the training in the output folder"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="train the bundle in the output folder afresh"
    )
    train.add_argument("--tracking", help="mlflow, or a MONAI tracking settings file")
    add_modality(train)
    add_computing(train)
    add_overrides(train, "override a line of the bundle's train.yaml")

    export = add_command(commands, "export", _export, "write a model as ONNX or TorchScript")
    export.add_argument("model", type=Path, help="model.pt of a trained bundle")
    export.add_argument("out", type=Path, help="file to write: .onnx or .ts")

    verify = add_command(
        commands, "verify", _verify, "check the files of a trained bundle against its SHA256SUMS"
    )
    verify.add_argument("bundle", type=Path, help="folder of the trained bundle")
    add_json(verify)

    label = add_command(commands, "label-app", _label_app, "make a MONAI Label app of bundles")
    label.add_argument("directory", type=Path, help="folder of the app")
    label.add_argument(
        "--bundle",
        action="append",
        help="trained bundle, or name of a shipped one; may be repeated (default: all shipped)",
    )

    info = add_command(commands, "info", _info, "count parameters and FLOPs of a model")
    info.add_argument("--model", type=Path, help="model.pt (default: the default network)")
    info.add_argument(
        "--encoder", default="tf_efficientnet_b4.aa_in1k", help="encoder of the default network"
    )
    add_json(info)

    demo = add_command(commands, "demo", _demo, "train, evaluate and infer on generated studies")
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    demo.add_argument("--seed", type=int, default=0, help="seed of studies and training")
    add_computing(demo)


def _train(options: argparse.Namespace) -> None:
    from mcmiad_monai.files.room import prepare_output
    from mcmiad_monai.training.lock import TrainingLock

    if not options.resume or options.out.is_dir():
        prepare_output(options.out, room=TRAINING_ROOM, levels=3)
    with TrainingLock(options.out / "models"):
        _train_alone(options)
    report_not_read([options.source], options.image_name)
    if not options.quiet:
        print(f"trained bundle: {options.out}")


def _train_alone(options: argparse.Namespace) -> None:
    from mcmiad_monai.bundle import copy_bundle, replace_bundle

    out, afresh = options.out, options.out / AFRESH
    if not options.resume and not options.overwrite:
        _require_untrained(out)
    if options.resume:
        root = afresh if afresh.exists() else out
    else:
        shutil.rmtree(afresh, ignore_errors=True)
        finished = options.overwrite and (out / "models" / "model.pt").exists()
        root = copy_bundle(options.bundle, afresh if finished else out)
    checkpoint = root.resolve() / "models" / "last.pt"
    more = {
        "output_dir": str(out.resolve() / "eval") if root == afresh else None,
        "preset": options.preset,
        "method#parts": options.method,
        "method#score": options.score,
        "encoder_name": options.encoder,
        "weights": options.weights,
        "text_prior": options.text_prior,
        "max_epochs": options.epochs,
        "resume": str(checkpoint) if options.resume else None,
    }
    if options.resume and options.tracking:  # MONAI writes for it as soon as the bundle is open
        _check_resume(options, root, more)
    started = time.time()
    try:
        open_training(options, root, more).run()
    except KeyboardInterrupt as stop:
        kept = checkpoint.is_file() and (options.resume or checkpoint.stat().st_mtime >= started)
        stop.args = (
            f"its finished epochs are in {checkpoint}; go on with the same command and --resume"
            if kept
            else f"no epoch was finished; train {out} again with --overwrite",
        )
        raise
    if root == afresh:
        replace_bundle(afresh, out)


def _check_resume(options: argparse.Namespace, root: Path, more: dict[str, Any]) -> None:
    plain = argparse.Namespace(**{**vars(options), "tracking": None})
    parser = open_training(plain, root, more).parser
    resume, directory = (parser.get_parsed_content(name) for name in ("resume", "ckpt_dir"))
    parser.get_parsed_content("identity").check(resume, directory)


def _require_untrained(root: Path) -> None:
    """Refuse a folder that holds the models of an earlier training."""
    for name in ("model.pt", "last.pt"):
        if (root / "models" / name).exists():
            raise ValueError(
                f"{root} already holds a training (models/{name}). Continue it with --resume, "
                "train it afresh with --overwrite, or name another folder."
            )


def _export(options: argparse.Namespace) -> None:
    from mcmiad_monai.bundle import renew_checksum
    from mcmiad_monai.networks.package import load_package
    from mcmiad_monai.runtime.export import export_model

    exported = export_model(load_package(options.model), options.out)
    renew_checksum(exported)
    print(f"exported: {exported}")


def _verify(options: argparse.Namespace) -> int:
    from mcmiad_monai.bundle import compare_checksums

    differs = compare_checksums(options.bundle)
    if options.json:
        print_json(differs)
    elif differs:
        for name, how in differs.items():
            print(f"{how}\t{escaped(name)}")
    else:
        print(f"{options.bundle}: all files are as they were written")
    return FAILED if differs else OK


def _label_app(options: argparse.Namespace) -> None:
    from mcmiad_monai.bundle import shipped_bundles
    from mcmiad_monai.monailabel.layout import lay_out_app

    shipped = shipped_bundles()
    app = lay_out_app(
        options.directory, [shipped.get(name, name) for name in options.bundle or shipped]
    )
    print(f"app: {app}\nserve it with: monailabel start_server --app {app} --studies DIR")


def _info(options: argparse.Namespace) -> None:
    from mcmiad_monai.networks.info import model_costs

    costs = model_costs(model=options.model, encoder=options.encoder)
    if options.json:
        print_json(
            [
                {"part": row.part, "parameters": row.parameters, "trainable": row.trainable}
                | {"flops_per_slice": row.flops, "macs_per_slice": row.macs}
                for row in costs
            ]
        )
        return
    titles = ("parameters", "trainable", "MFLOP/slice", "MMAC/slice")
    width = max(8, *(len(row.part) for row in costs))
    print(f"{'part':<{width}}" + "".join(f" {title:>12}" for title in titles))
    for row in costs:
        counts = (row.parameters, row.trainable, row.flops // 10**6, row.macs // 10**6)
        print(f"{row.part:<{width}}" + "".join(f" {count:>12,}" for count in counts))


def _demo(options: argparse.Namespace) -> None:
    from mcmiad_monai.cli.demo import run_demo

    run_demo(options.out, seed=options.seed, device=options.device, progress=not options.quiet)
