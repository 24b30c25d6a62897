"""The commands of ``mcmiad`` for research: benchmarks, protocols, robustness, adaptation.

Each is a few lines over the rooms of the package; nothing heavy is imported before it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcmiad_monai.modality import MODALITIES

NewCommand = Callable[[str, Any, str], argparse.ArgumentParser]


def numbers(text: str) -> list[int]:
    """``1,2,3`` as a list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0,1,2.") from error


def named(text: str) -> tuple[str, str]:
    """``NAME=VALUE``."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE.")
    return name, value


def add_commands(command: NewCommand, override: Callable[[str], tuple[str, Any]]) -> None:
    """Add the parsers.

    Parameters
    ----------
    command : callable
        Makes the parser of a command from its name, function and help.
    override : callable
        Reads ``KEY=VALUE``.
    """
    _add_prompts(command)
    _add_bmad(command)
    _add_reproduce(command, override)
    _add_stress(command)
    _add_subgroups(command)


def _add_stress(command: NewCommand) -> None:
    stress = command("stress", _stress, "figures and false alarms when images get worse")
    stress.add_argument("source", type=Path, help="studies with masks: folder or datalist JSON")
    stress.add_argument("--bundle", type=Path, required=True, help="trained bundle, or a model.pt")
    stress.add_argument("--out", type=Path, required=True, help="finished studies in it are kept")
    stress.add_argument("--split", default="test", choices=["train", "val", "test", "all"])
    stress.add_argument("--corruptions", help="names with commas; all of the modality if left")
    stress.add_argument("--severities", type=numbers, default=[1, 2, 3, 4, 5])
    stress.add_argument("--attributes", type=Path, help="also subgroup tables, from this CSV")
    stress.add_argument("--seed", type=int, default=0)
    stress.add_argument(
        "--modality", choices=sorted(MODALITIES), help="what the studies are, for a unified bundle"
    )
    stress.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_subgroups(command: NewCommand) -> None:
    groups = command("subgroups", _subgroups, "figures by scanner, site, sex, age, from a CSV")
    groups.add_argument("scores", type=Path, help="studies.csv of an evaluation, or scores.csv")
    groups.add_argument("--attributes", type=Path, required=True, help="CSV with a column case")
    groups.add_argument("--out", type=Path, required=True)
    groups.add_argument("--threshold", type=float, help="of volumes; the model's if left")


def _add_prompts(command: NewCommand) -> None:
    prompts = command("prompts", None, "show the prompts, encode them into a prior, or adapt CLIP")
    actions = prompts.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument("--prompts", type=Path, help="your own, by modality: YAML, JSON or text")
        sub.set_defaults(run=run)
        return sub

    action("show", _prompts_show, "print the prompts")
    encode = action("encode", _prompts_encode, "make a prior file")
    encode.add_argument("--encoder", default="open_clip", help="open_clip[:MODEL/WEIGHTS], hashing")
    encode.add_argument("--out", type=Path, default=Path("text_prior.safetensors"))

    adapt = action("adapt", _prompts_adapt, "fit CLIP's projections to normal images, make a prior")
    adapt.add_argument(
        "--data",
        type=named,
        action="append",
        required=True,
        metavar="MODALITY=FOLDER",
        help="normal studies or images of a modality; at least two modalities",
    )
    adapt.add_argument("--model", default="ViT-B-16", help="OpenCLIP's name")
    adapt.add_argument("--pretrained", default="openai", help="OpenCLIP's tag, or a checkpoint")
    adapt.add_argument("--epochs", type=int, default=20, help="at most; it ends when it is enough")
    adapt.add_argument("--seed", type=int, default=0)
    adapt.add_argument("--device", default="cpu")
    adapt.add_argument("--out", type=Path, default=Path("text_prior_adapted.safetensors"))


def _add_bmad(command: NewCommand) -> None:
    bmad = command(
        "bmad", None, "look at BMAD on disk, prepare it from volumes, or draw a small one"
    )
    actions = bmad.add_subparsers(dest="action", required=True, metavar="ACTION")

    check = actions.add_parser("check", help="what is there, against what there should be")
    check.add_argument("root", type=Path, help="folder with BMAD's sets, in any layout")
    check.add_argument("--verify", action="store_true", help="read every image and mask")
    check.add_argument("--json", type=Path, help="also write the report here")
    check.set_defaults(run=_bmad_check)

    prepare = actions.add_parser("prepare", help="brain and liver sets from the volumes")
    prepare.add_argument("what", choices=["brain", "liver"])
    prepare.add_argument("--brats", type=Path, help="BraTS2021, for brain")
    prepare.add_argument("--btcv", type=Path, help="BTCV, for liver")
    prepare.add_argument("--lits", type=Path, help="LiTS, for liver")
    prepare.add_argument("--out", type=Path, required=True, help="new or empty folder")
    prepare.add_argument("--seed", type=int, default=0, help="of the split by patient")
    prepare.add_argument(
        "--clean",
        action="store_true",
        help="one HU window for both CT sources, no colour map, Ungood only with lesion",
    )
    prepare.set_defaults(run=_bmad_prepare)

    phantom = actions.add_parser("phantom", help="a small generated tree, to try commands on")
    phantom.add_argument("out", type=Path, help="new or empty folder")
    phantom.add_argument(
        "--layout", default="official", choices=["official", "flat", "inverted", "archive", "ader"]
    )
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=_bmad_phantom)


def _add_reproduce(command: NewCommand, override: Callable[[str], tuple[str, Any]]) -> None:
    reproduce = command("reproduce", _reproduce, "the paper's tables from BMAD, or from own images")
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
    reproduce.add_argument("--tables", type=numbers, default=[1, 2, 3, 4])
    reproduce.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    reproduce.add_argument("--shots", type=numbers, default=[1], help="normal images of Table 3")
    reproduce.add_argument("--encoder", help="timm model, or open_clip:MODEL")
    reproduce.add_argument("--weights", help="pretrained, a weights file, or random")
    reproduce.add_argument("--text-prior", help="open_clip, hashing, or a prior file")
    reproduce.add_argument("--epochs", type=int)
    reproduce.add_argument(
        "--compare-encoder",
        type=named,
        action="append",
        default=[],
        metavar="NAME=WEIGHTS",
        help="a further encoder for the ablations; may be repeated",
    )
    reproduce.add_argument("--device", default="cpu", help="cpu or cuda")
    reproduce.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        type=override,
        action="append",
        default=[],
        help="another option of the method, e.g. pool=area; head options as head.dim=128",
    )


def _prompts_show(options: argparse.Namespace) -> None:
    from mcmiad_monai.research.prompts import flat, prompts_of

    print("\n".join(flat(prompts_of(options.prompts))))


def _prompts_encode(options: argparse.Namespace) -> None:
    from mcmiad_monai.networks.text_prior import resolve_text_prior
    from mcmiad_monai.research.prompts import flat, prompts_of

    prior = resolve_text_prior(options.encoder, flat(prompts_of(options.prompts)))
    prior.save(options.out)
    print(f"{options.out}: {len(prior.prompts)} prompts, {prior.encoder}, {prior.weights}")


def _prompts_adapt(options: argparse.Namespace) -> None:
    import json

    from mcmiad_monai.data.cases.find import find_cases
    from mcmiad_monai.files import write_text
    from mcmiad_monai.research.clip_adaptation import adapt_text_prior
    from mcmiad_monai.research.prompts import prompts_of

    cases: dict[str, list[dict[str, Any]]] = {}
    for modality, folder in options.data:  # a modality can have several folders
        cases.setdefault(modality, []).extend(find_cases(folder, "train"))
    found = adapt_text_prior(
        cases,
        model=options.model,
        pretrained=options.pretrained,
        prompts=prompts_of(options.prompts),
        max_epochs=options.epochs,
        seed=options.seed,
        device=options.device,
    )
    found.prior.save(options.out)
    report = options.out.with_suffix(".json")
    write_text(report, json.dumps(found.report, indent=1))
    for when in ("before", "after"):
        told = ", ".join(f"{k} {v:.4f}" for k, v in found.report[when].items())
        print(f"{when}: {told}")
    print(f"{options.out}: {found.prior.encoder}; report {report}")


def _bmad_check(options: argparse.Namespace) -> None:
    import json

    from mcmiad_monai.files import write_text
    from mcmiad_monai.provenance import produced_with
    from mcmiad_monai.research.bmad.report import bmad_report
    from mcmiad_monai.research.bmad.sets import find_bmad

    report = bmad_report(find_bmad(options.root), verify=options.verify, progress=True)
    print(report.text())
    if options.json:
        content = {**report.to_dict(), **produced_with()}
        write_text(options.json, json.dumps(content, indent=1))
    if report.problems:
        sys.exit(1)


def _bmad_prepare(options: argparse.Namespace) -> None:
    from mcmiad_monai.research.bmad.prepare import prepare_brain, prepare_liver

    wanted = ("brats",) if options.what == "brain" else ("btcv", "lits")
    missing = [f"--{name}" for name in wanted if getattr(options, name) is None]
    if missing:
        raise ValueError(f"{options.what} is prepared from {' and '.join(missing)}: give a folder.")
    kept = {"clean": options.clean, "seed": options.seed}
    if options.what == "brain":
        found = prepare_brain(options.brats, options.out, **kept)
    else:
        found = prepare_liver(options.btcv, options.lits, options.out, **kept)
    for folder, count in sorted(found.counts.items()):
        print(f"{folder}\t{count}")
    if found.failures:
        told = "".join(f"\n  {name}: {error}" for name, error in found.failures.items())
        sys.exit(f"{len(found.failures)} volumes could not be used:{told}")


def _bmad_phantom(options: argparse.Namespace) -> None:
    from mcmiad_monai.research.bmad.phantom import write_bmad_phantom

    print(write_bmad_phantom(options.out, layout=options.layout, seed=options.seed))


def _reproduce(options: argparse.Namespace) -> None:
    from mcmiad_monai.research.bmad.sets import find_bmad, own_set
    from mcmiad_monai.research.protocols.reproduce import reproduce

    if options.bmad:
        sets = find_bmad(options.bmad)
    else:
        found = [own_set(folder, modality) for modality, folder in options.own]
        sets = {one.name: one for one in found}
    reproduce(
        sets,
        options.out,
        _method(options),
        tables=options.tables,
        seeds=options.seeds,
        shots=options.shots,
        encoders=dict(options.compare_encoder),
        device=options.device,
    )
    print((options.out / "report.md").read_text(encoding="utf-8").split("## Details")[0])
    print(f"all figures: {options.out / 'report.md'}")


def _stress(options: argparse.Namespace) -> None:
    from mcmiad_monai.data.cases.find import find_cases
    from mcmiad_monai.research.robustness import require_complete, run_stress, subgroup_report

    model = options.bundle / "models" / "model.pt" if options.bundle.is_dir() else options.bundle
    report = run_stress(
        model,
        find_cases(options.source, options.split),
        out=options.out,
        corruptions=options.corruptions.split(",") if options.corruptions else None,
        severities=options.severities,
        seed=options.seed,
        modality=options.modality,
        device=options.device,
    )
    if options.attributes:
        subgroup_report(options.out / "studies.csv", options.attributes, out=options.out)
    print((options.out / "stress.md").read_text(encoding="utf-8"))
    require_complete(report)


def _subgroups(options: argparse.Namespace) -> None:
    from mcmiad_monai.research.robustness import subgroup_report

    subgroup_report(
        options.scores, options.attributes, out=options.out, threshold=options.threshold
    )
    print((options.out / "subgroups.md").read_text(encoding="utf-8"))


def _method(options: argparse.Namespace) -> Any:
    from mcmiad_monai.research.protocols.method import Method

    given = {
        "encoder": options.encoder,
        "weights": options.weights,
        "text_prior": options.text_prior,
        "epochs": options.epochs,
        **{k: v for k, v in options.overrides if not k.startswith("head.")},
    }
    method = Method().with_options(**{k: v for k, v in given.items() if v is not None})
    head = {k.removeprefix("head."): v for k, v in options.overrides if k.startswith("head.")}
    return method.with_head(**head)
