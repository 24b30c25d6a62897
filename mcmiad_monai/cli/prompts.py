"""The command ``mcmiad prompts``: descriptions of normal anatomy, and priors made from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcmiad_monai.cli.options import Commands, add_command, add_computing, chosen_device, named


def add_commands(commands: Commands) -> None:
    """Add the parsers."""
    prompts = add_command(
        commands, "prompts", None, "print the prompts, make a text prior, or adapt CLIP"
    )
    actions = prompts.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(
        name: str, run: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        parser = add_command(actions, name, run, text)
        parser.add_argument(
            "--prompts", type=Path, metavar="FILE", help="your own prompts: YAML, JSON or text"
        )
        return parser

    action("show", _show, "print the prompts")
    encode = action("encode", _encode, "encode the prompts into a prior file with a card")
    encode.add_argument("--encoder", default="open_clip", help="open_clip[:MODEL/WEIGHTS], hashing")
    encode.add_argument(
        "--out", type=Path, default=Path("text_prior.safetensors"), help="file of the prior"
    )

    adapt = action("adapt", _adapt, "fit CLIP's projections to normal images, and write a prior")
    adapt.add_argument(
        "--data",
        type=named,
        action="append",
        required=True,
        metavar="MODALITY=FOLDER",
        help="normal studies of a modality; needed for at least two modalities",
    )
    adapt.add_argument("--model", default="ViT-B-16", help="model of OpenCLIP")
    adapt.add_argument("--pretrained", default="openai", help="tag of OpenCLIP, or a checkpoint")
    adapt.add_argument("--epochs", type=int, default=20, help="at most; stops early by itself")
    adapt.add_argument("--seed", type=int, default=0, help="seed of the training")
    add_computing(adapt)
    adapt.add_argument(
        "--out", type=Path, default=Path("text_prior_adapted.safetensors"), help="file of the prior"
    )


def _show(options: argparse.Namespace) -> None:
    from mcmiad_monai.research.prompts import flat, prompts_of

    print("\n".join(flat(prompts_of(options.prompts))))


def _encode(options: argparse.Namespace) -> None:
    from mcmiad_monai.networks.text_prior import resolve_text_prior
    from mcmiad_monai.research.prior_card import write_prior
    from mcmiad_monai.research.prompts import flat, prompts_of

    prior = resolve_text_prior(options.encoder, flat(prompts_of(options.prompts)))
    card = write_prior(prior, options.out)
    print(f"{options.out}: {len(prior.prompts)} prompts, {prior.encoder}, {prior.weights}")
    print(f"card: {card}")


def _adapt(options: argparse.Namespace) -> None:
    import json

    from mcmiad_monai.data.cases.find import find_cases
    from mcmiad_monai.files.writing import write_text
    from mcmiad_monai.research.clip_adaptation import adapt_text_prior
    from mcmiad_monai.research.prior_card import write_prior
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
        device=chosen_device(options),
    )
    card = write_prior(found.prior, options.out)
    report = options.out.with_suffix(".json")
    write_text(report, json.dumps(found.report, indent=1))
    for when in ("before", "after"):
        print(f"{when}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.report[when].items()))
    print(f"{options.out}: {found.prior.encoder}; report {report}, card {card}")
