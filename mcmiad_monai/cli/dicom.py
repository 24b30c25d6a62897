"""The commands ``dicom``, ``send`` and ``watch``: results where radiologists look."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.cli.console import FAILED, OK, print_error, print_json
from mcmiad_monai.cli.options import (
    DICOM_KINDS,
    Commands,
    add_command,
    add_computing,
    add_json,
    add_max_voxels,
    add_modality,
    add_overrides,
    positive,
)

if TYPE_CHECKING:
    from mcmiad_monai.dicom.analyst import Analyst
    from mcmiad_monai.dicom.send import Sent

logger = logging.getLogger(__name__)

#: Variable of the environment with the bundle, where no option names one.
BUNDLE = "MCMIAD_BUNDLE"
#: Results that are made unless others are asked for.
OUTPUT = "seg,sr"
TARGET = "https://host/dicom-web (STOW-RS), or AET@host:port (C-STORE)"


def add_commands(commands: Commands) -> None:
    """Add the parsers."""
    dicom = add_command(commands, "dicom", _dicom, "a folder of DICOM in, a folder of DICOM out")
    dicom.add_argument(
        "source", nargs="?", type=Path, metavar="IN", help="folder (default: MERCURE_IN_DIR)"
    )
    dicom.add_argument(
        "out", nargs="?", type=Path, metavar="OUT", help="folder (default: MERCURE_OUT_DIR)"
    )
    _add_model(dicom)
    dicom.add_argument("--send", metavar="TARGET", help=f"also send the results: {TARGET}")
    add_json(dicom)

    send = add_command(commands, "send", _send, "send results that were written, each once")
    send.add_argument("source", nargs="+", type=Path, help="folders of results, or DICOM files")
    send.add_argument("--to", required=True, metavar="TARGET", help=TARGET)

    watch = add_command(commands, "watch", _watch, "analyse new series of an Orthanc as they come")
    watch.add_argument("url", help="address of Orthanc, as http://127.0.0.1:8042")
    watch.add_argument("--out", type=Path, required=True, help="folder of the position and records")
    _add_model(watch)
    watch.add_argument(
        "--send", metavar="TARGET", help=f"where results go (default: the same Orthanc): {TARGET}"
    )
    watch.add_argument("--keep", action="store_true", help="keep the files of results in --out")
    watch.add_argument(
        "--port", type=int, default=0, help="of the status page, on 127.0.0.1 (default: a free one)"
    )
    watch.add_argument(
        "--poll", type=positive, default=5, metavar="S", help="seconds between looks (default: 5)"
    )
    watch.add_argument(
        "--new-only",
        action="store_true",
        help="at the first start, pass over what is in the archive already",
    )
    watch.add_argument(
        "--once", action="store_true", help="end when all that has come is done, and do not wait"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle", type=Path, help=f"trained bundle, or its model.pt (default: {BUNDLE})"
    )
    parser.add_argument(
        "--output", metavar="KINDS", help=f"of seg, pmap, sr and sc (default: {OUTPUT})"
    )
    parser.add_argument(
        "--compact", action="store_true", help="smaller files, which not every viewer reads"
    )
    add_modality(parser)
    add_max_voxels(parser)
    add_computing(parser)
    add_overrides(parser, "override a setting of the bundle's inference.yaml")


def _kinds(given: str | list[str]) -> list[str]:
    """Kinds of results, of ``seg,sr`` or a list."""
    kinds = given if isinstance(given, list) else given.split(",")
    if unknown := [kind for kind in kinds if kind not in DICOM_KINDS]:
        raise ValueError(f"output has {unknown}; there are {', '.join(DICOM_KINDS)}.")
    if not kinds:
        raise ValueError(f"output is empty; choose of {', '.join(DICOM_KINDS)}.")
    return list(dict.fromkeys(kinds))


def _analyst(options: argparse.Namespace, settings: dict[str, Any]) -> Analyst:
    """The model with what the command line says, else the settings, else the environment."""
    from mcmiad_monai.dicom.analyst import Analyst
    from mcmiad_monai.dicom.objects import check_installed
    from mcmiad_monai.inference.settings import SETTINGS
    from mcmiad_monai.predictor import load

    check_installed()
    kinds = _kinds(options.output or settings.get("output") or OUTPUT)
    bundle = options.bundle or settings.get("bundle") or os.environ.get(BUNDLE)
    if bundle is None:
        raise ValueError(f"no model is named: give --bundle, or set {BUNDLE}.")
    given = dict(options.overrides)
    if unknown := sorted(set(given) - set(SETTINGS)):
        raise ValueError(f"{', '.join(unknown)}: no such setting. There are {', '.join(SETTINGS)}.")
    chosen = {SETTINGS[key]: value for key, value in given.items()}
    modality = options.modality or settings.get("modality")
    chosen |= {"modality": modality} if modality else {}
    chosen |= {"max_voxels": options.max_voxels} if options.max_voxels else {}
    predictor = load(bundle, device=options.device, **chosen)
    return Analyst(predictor, kinds, compact=options.compact or bool(settings.get("compact")))


def _dicom(options: argparse.Namespace) -> int:
    from mcmiad_monai.dicom.job import Job, summary
    from mcmiad_monai.dicom.mercure import is_success, mercure_folders, notification, task_settings
    from mcmiad_monai.dicom.send import sender_to
    from mcmiad_monai.files.room import prepare_output

    settings: dict[str, Any] = {}
    mercure = mercure_folders() if options.source is None else None
    source, out = mercure or (options.source, options.out)
    if source is None or out is None:
        raise ValueError("name a folder IN and a folder OUT; or set MERCURE_IN_DIR and _OUT_DIR.")
    if mercure:
        settings = task_settings(source)
    if options.send:
        sender_to(options.send)  # refuses what is no address before anything is computed
    job = Job(source, out)
    analyst = _analyst(options, settings)
    prepare_output(out)
    job.run(analyst)
    job.write(**notification(job.content, notify=settings.get("notify", True)))
    code = OK if all(s["status"] == "done" for s in job.content["series"]) else FAILED
    if mercure:
        code = OK if is_success(job.content) else FAILED
    if options.send and told_unsent(job.send(options.send), out):
        code = FAILED
    if options.json:
        print_json(job.content)
    logger.info("%s: %s", out, summary(job.content))
    return code


def _send(options: argparse.Namespace) -> int:
    from mcmiad_monai.dicom.send import LEDGER, SendLedger, send, sender_to

    sender, code = sender_to(options.to), OK
    for source in options.source:
        folder = source if source.is_dir() else source.parent
        found = sorted(source.rglob("*.dcm")) if source.is_dir() else [source]
        files = [file for file in found if file.is_file() and file.name[0] != "."]
        if not files:
            raise ValueError(f"{source} is no DICOM file, and no folder with files *.dcm.")
        sent = send(files, sender, SendLedger(folder / LEDGER, sender.target))
        if told_unsent(sent, source):
            code = FAILED
    return code


def told_unsent(sent: Sent, folder: Path) -> bool:
    """Say what was sent and what was not; whether anything was not."""
    logger.info(
        "%s: %d files sent, %d sent before", sent.target, len(sent.stored), len(sent.before)
    )
    if sent.unsent:
        print_error(sent.message(folder))
    return bool(sent.unsent)


def _watch(options: argparse.Namespace) -> int:
    from mcmiad_monai.dicom.watch import watch

    return watch(
        options.url,
        options.out,
        lambda: _analyst(options, {}),
        target=options.send,
        keep=options.keep,
        port=options.port,
        poll=options.poll,
        once=options.once,
        new_only=options.new_only,
    )
