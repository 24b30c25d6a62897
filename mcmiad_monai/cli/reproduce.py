"""The command ``mcmiad reproduce``: the paper's tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mcmiad_monai.cli.options import (
    PRESETS,
    Commands,
    add_command,
    add_computing,
    add_overrides,
    chosen_device,
    named,
    numbers,
)


def add_commands(commands: Commands) -> None:
    """Add the parser."""
    reproduce = add_command(
        commands, "reproduce", _reproduce, "make the paper's tables from BMAD, or from your images"
    )
    source = reproduce.add_mutually_exclusive_group(required=True)
    source.add_argument("--bmad", type=Path, help="folder with BMAD's sets, in any layout")
    source.add_argument(
        "--own",
        type=named,
        action="append",
        metavar="MODALITY=FOLDER",
        help="a folder of your own with train, val and test; may be repeated",
    )
    reproduce.add_argument("--out", type=Path, required=True, help="finished runs in it are kept")
    reproduce.add_argument(
        "--tables", type=numbers, default=[1, 2, 3, 4], help="which tables, e.g. 1,2"
    )
    reproduce.add_argument(
        "--seeds", type=numbers, default=[0, 1, 2], help="seeds of the runs, e.g. 0,1,2"
    )
    reproduce.add_argument("--shots", type=numbers, default=[1], help="normal images of Table 3")
    reproduce.add_argument(
        "--preset", choices=PRESETS, default="paper", help="settings of the method"
    )
    reproduce.add_argument("--encoder", help="auto, a model of timm, open_clip:MODEL, or A+B")
    reproduce.add_argument("--weights", help="pretrained, packaged, a weights file, random, or A+B")
    reproduce.add_argument("--text-prior", help="open_clip, hashing, or a prior file")
    reproduce.add_argument(
        "--no-adaptation",
        action="store_true",
        help="leave CLIP as it is; by default it is first adapted to the training images",
    )
    reproduce.add_argument(
        "--masks",
        choices=["any", "white"],
        default="any",
        help="what of BMAD's masks is lesion: any value above 0, or white alone as in BMAD's code",
    )
    reproduce.add_argument("--epochs", type=int, help="epochs to train")
    reproduce.add_argument(
        "--compare-encoder",
        type=named,
        action="append",
        default=[],
        metavar="NAME=WEIGHTS",
        help="another encoder for the ablations; may be repeated",
    )
    add_computing(reproduce)
    add_overrides(reproduce, "another option of the method, e.g. pool=area or head.dim=128")


def _reproduce(options: argparse.Namespace) -> None:
    from mcmiad_monai.files.room import prepare_output
    from mcmiad_monai.research.bmad.sets import find_bmad, own_set
    from mcmiad_monai.research.protocols.reproduce import report_folder, reproduce

    if options.bmad:
        sets = find_bmad(options.bmad, masks=options.masks)
    elif options.masks != "any":
        raise ValueError("--masks white is a reading of BMAD's masks; it needs --bmad, not --own.")
    else:
        found = [own_set(folder, modality) for modality, folder in options.own]
        sets = {one.name: one for one in found}
    prepare_output(options.out, levels=4)
    reproduce(
        sets,
        options.out,
        _method(options),
        tables=options.tables,
        seeds=options.seeds,
        shots=options.shots,
        encoders=dict(options.compare_encoder),
        adaptation=not options.no_adaptation,
        device=chosen_device(options),
        progress=not options.quiet,
    )
    report = report_folder(options.out, options.masks) / "report.md"
    print(report.read_text(encoding="utf-8").split("## Details")[0])
    print(f"all figures: {report}")


def _method(options: argparse.Namespace) -> Any:
    from mcmiad_monai.training.method import preset

    given = {
        "encoder_name": options.encoder,
        "weights": options.weights,
        "text_prior": options.text_prior,
        "max_epochs": options.epochs,
        **{key.removeprefix("head."): value for key, value in options.overrides},
    }
    return preset(options.preset, **given)
