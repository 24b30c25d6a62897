"""The commands ``cases``, ``infer`` and ``evaluate``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcmiad_monai.cli.console import FAILED, OK, print_json, report_not_read
from mcmiad_monai.cli.options import (
    DICOM_KINDS,
    NIFTI,
    SPLITS,
    Commands,
    add_command,
    add_computing,
    add_json,
    add_max_voxels,
    add_modality,
    add_overrides,
    add_source,
    kinds_of_files,
)
from mcmiad_monai.errors import escaped
from mcmiad_monai.files.formats import is_address

if TYPE_CHECKING:
    from mcmiad_monai.data.cases.names import Case
    from mcmiad_monai.dicom.objects import Objects
    from mcmiad_monai.inference.cohort import CohortReport
    from mcmiad_monai.predictor import Predictor

logger = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    """Add the parsers."""
    cases = add_command(commands, "cases", _cases, "list the studies found in a source")
    add_source(cases, "file, folder, datalist, table of paths, DICOMweb address", archives=True)
    cases.add_argument("--split", default="all", choices=SPLITS, help="which studies")
    cases.add_argument(
        "--explain", action="store_true", help="also list the files that were not read, and why"
    )
    add_json(cases)

    infer = add_command(commands, "infer", _infer, "write heatmaps, masks and scores of studies")
    add_source(
        infer,
        "studies, folders of studies, datalists, tables of paths (.csv, .parquet), DICOMweb "
        "addresses (https://…)",
        archives=True,
        nargs="+",
        metavar="SOURCE",
    )
    infer.add_argument("--bundle", type=Path, required=True, help="trained bundle, or its model.pt")
    infer.add_argument("--out", type=Path, required=True, help="output folder")
    infer.add_argument(
        "--output",
        type=kinds_of_files,
        default=(NIFTI,),
        metavar="KINDS",
        help=f"files to write, of {','.join((NIFTI, *DICOM_KINDS))}; all but {NIFTI} are DICOM "
        f"objects, of studies in DICOM (default: {NIFTI})",
    )
    infer.add_argument(
        "--bands", action="store_true", help="segments of the DICOM segmentation: severity bands"
    )
    infer.add_argument(
        "--compact",
        action="store_true",
        help="smaller DICOM objects (JPEG-LS, deflated), which not every tool reads",
    )
    infer.add_argument(
        "--send",
        metavar="TARGET",
        help="also send the DICOM objects: https://host/dicom-web (STOW-RS), or AET@host:port "
        "(C-STORE)",
    )
    infer.add_argument(
        "--preview", action="store_true", help="also write a picture of each study's hottest slices"
    )
    infer.add_argument(
        "--continue",
        dest="keep",
        action="store_true",
        help="keep complete results of the same model and settings in --out, and do the others",
    )
    add_modality(infer)
    add_max_voxels(infer)
    add_computing(infer)
    add_json(infer)
    add_overrides(infer, "override a setting of the bundle's inference.yaml")

    evaluate = add_command(commands, "evaluate", _evaluate, "measure a model on studies with masks")
    add_source(evaluate, "studies with lesion masks: folder or datalist JSON")
    evaluate.add_argument(
        "--bundle", type=Path, required=True, help="trained bundle, or its model.pt"
    )
    evaluate.add_argument("--out", type=Path, help="output folder (default: the bundle's eval)")
    add_modality(evaluate)
    add_max_voxels(evaluate)
    add_computing(evaluate)
    add_json(evaluate)
    add_overrides(evaluate, "override a setting of the bundle's inference.yaml")


def _cases(options: argparse.Namespace) -> int:
    from mcmiad_monai.cohort.sources import studies_of
    from mcmiad_monai.data.cases.explain import explain
    from mcmiad_monai.data.cases.find import find_cases

    archived = is_address(options.source) or options.query
    if archived:
        cases = list(studies_of([options.source], split=options.split, query=options.query))
    else:
        cases = find_cases(options.source, options.split, image_name=options.image_name)
    left_out = (
        explain(options.source, options.split, image_name=options.image_name)
        if options.explain and not archived
        else {}
    )
    refused = [case for case in cases if "refused" in case]
    if options.json:
        reasons = [{"path": str(path), "reason": reason} for path, reason in left_out.items()]
        print_json({"cases": cases, "not_read": reasons} if options.explain else cases)
        return FAILED if refused else OK
    clear = [case for case in cases if "refused" not in case]
    for case in clear:
        print(*(escaped(case.get(key) or "-") for key in ("case", "image", "label")), sep="\t")
    if options.explain:
        print(f"\n{len(clear)} studies found, {len(left_out)} files not read")
        for path, reason in left_out.items():
            print(escaped(str(path)), escaped(reason), sep="\t")
    elif cases:
        report_not_read([options.source], options.image_name)
    for case in refused:
        logger.error("study %s refused: %s", case["case"], case["refused"])
    return FAILED if refused else OK


def _infer(options: argparse.Namespace) -> int:
    from mcmiad_monai.cohort.sources import on_disk
    from mcmiad_monai.files.room import prepare_output
    from mcmiad_monai.inference.cohort import infer_cohort
    from mcmiad_monai.inference.continuing import finished_studies, room_needed

    objects = _objects(options)
    if options.send:
        _check_send(options)
    predictor, cases, settings = _opened(options, {"pictures": True})
    if objects:
        objects.check(cases)
    files = {"pictures": settings["pictures"], "preview": options.preview}
    files["nifti"] = NIFTI in options.output
    dicom = objects.options if objects else None
    made_with = predictor.made_with
    kept = (
        finished_studies(cases, options.out, made_with, dicom=dicom, **files)
        if options.keep
        else {}
    )
    todo = [case for case in cases if case["case"] not in kept]
    voxel_bytes = objects.voxel_bytes if objects else 0
    prepare_output(options.out, room=room_needed(todo, dicom_bytes=voxel_bytes))
    report = infer_cohort(
        predictor,
        cases,
        options.out,
        progress=settings["progress"],
        kept=kept,
        objects=objects,
        at_hand=on_disk,
        **files,
    )
    if options.json:
        print_json(report.content())
    report_not_read(options.source, options.image_name)
    unsent = bool(options.send) and _is_unsent(options, report)
    report.finish()
    return FAILED if unsent else OK


def _check_send(options: argparse.Namespace) -> None:
    """Refuse to send nothing, or to no address, before anything is computed."""
    from mcmiad_monai.dicom.send import sender_to

    if set(options.output) == {NIFTI}:
        raise ValueError(f"--send is for DICOM objects: add {', '.join(DICOM_KINDS)} to --output.")
    sender_to(options.send)


def _is_unsent(options: argparse.Namespace, report: CohortReport) -> bool:
    """Send the objects of all studies that are done; whether any was not sent."""
    from mcmiad_monai.cli.dicom import told_unsent
    from mcmiad_monai.dicom.send import send_to
    from mcmiad_monai.inference.prediction import DICOM

    files = [
        options.out / scores["case"] / name
        for scores in report.scores
        for name in scores.get(DICOM, {}).get("files", {}).values()
        if name is not None
    ]
    return told_unsent(send_to(options.send, files, options.out), options.out)


def _objects(options: argparse.Namespace) -> Objects | None:
    """The DICOM objects that were asked for.

    Raises
    ------
    ValueError
        If they cannot be written, or an option of them stands alone.
    """
    kinds = [kind for kind in options.output if kind != NIFTI]
    if options.bands and "seg" not in kinds:
        raise ValueError("--bands are segments of a DICOM segmentation: add seg to --output.")
    if not kinds:
        if options.compact:
            raise ValueError(
                f"--compact is for DICOM objects: add {', '.join(DICOM_KINDS)} to --output."
            )
        return None
    from mcmiad_monai.dicom.objects import Objects, check_installed

    check_installed()
    return Objects(kinds, options.out, compact=options.compact, bands=options.bands)


def _evaluate(options: argparse.Namespace) -> None:
    from mcmiad_monai.files.room import prepare_output
    from mcmiad_monai.inference.evaluation import evaluate

    if options.out is None and not options.bundle.is_dir():
        raise ValueError(
            f"{options.bundle} is no bundle's folder: name the output folder by --out."
        )
    predictor, cases, settings = _opened(options, {})
    out = options.out or options.bundle / "eval"
    prepare_output(out)
    report = evaluate(predictor, cases, out, progress=settings["progress"])
    if options.json:
        print_json(report.report)
    else:
        for name, value in report.report["metrics"].items():
            print(f"{name}\t{'undefined' if value is None else f'{value:.4f}'}")
    report_not_read([options.source], options.image_name)
    report.finish()


def _opened(
    options: argparse.Namespace, more: dict[str, Any]
) -> tuple[Predictor, list[Case], dict[str, Any]]:
    """The model, the studies, and the other settings of the command with what ``--set`` changes."""
    from mcmiad_monai.inference.settings import SETTINGS
    from mcmiad_monai.predictor import load

    others = {"split": "test", "progress": not options.quiet, "device": options.device, **more}
    given = dict(options.overrides)
    if unknown := sorted(set(given) - set(SETTINGS) - set(others)):
        raise ValueError(
            f"{', '.join(unknown)}: no such setting. There are {', '.join((*SETTINGS, *others))}. "
            f"Other lines of configs/*.yaml are overridden with python -m monai.bundle run."
        )
    chosen = {SETTINGS[key]: value for key, value in given.items() if key in SETTINGS}
    if options.modality:
        chosen.setdefault("modality", options.modality)
    if options.max_voxels:
        chosen["max_voxels"] = options.max_voxels
    settings = others | {key: value for key, value in given.items() if key in others}
    predictor = load(options.bundle, device=settings["device"], **chosen)
    return predictor, _studies(options, predictor, settings["split"]), settings


def _studies(options: argparse.Namespace, predictor: Predictor, split: Any) -> list[Case]:
    """Studies of files, and of archives where a source is one."""
    from mcmiad_monai.cohort.sources import studies_of
    from mcmiad_monai.data.cases.splits import find_studies

    sources = options.source if isinstance(options.source, list) else [options.source]
    query = getattr(options, "query", [])
    of_model = {
        "modality": predictor.modality,
        "study_modality": predictor.options.modality,
        "image_name": options.image_name,
    }
    if not query and not any(map(is_address, sources)):
        return find_studies(sources, split, **of_model)
    if getattr(options, "keep", False):
        raise ValueError(
            "--continue compares the files of studies, and those of a DICOMweb archive are "
            "elsewhere. Use mcmiad screen, which goes on by its records, or leave it out."
        )
    return list(studies_of(sources, split=split, query=query, **of_model))
