"""All tables of the paper with one call, which can be stopped and started again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.files import write_text
from mcmiad_monai.inference.cohort import CohortIncomplete
from mcmiad_monai.modality import LIVER_CT
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.bmad.sets import ImageSet
from mcmiad_monai.research.protocols.experiment import MODEL, Laboratory, run_experiment
from mcmiad_monai.research.protocols.pictures import figure_3
from mcmiad_monai.research.protocols.plans import BASE, TABLES, experiments
from mcmiad_monai.research.protocols.tables import MAKERS, Results, Table, details
from mcmiad_monai.training.method import Method

logger = logging.getLogger(__name__)


def reproduce(
    sets: Mapping[str, ImageSet],
    out: str | Path,
    method: Method,
    *,
    tables: Sequence[int] = TABLES,
    seeds: Sequence[int] = (0, 1, 2),
    shots: Sequence[int] = (1,),
    encoders: Mapping[str, str] | None = None,
    device: str = "cpu",
    size: int = 224,
    progress: bool = True,
) -> list[Table]:
    """Run what the tables need and has not been run, and write them.

    Into ``out`` come ``report.md``, a Markdown and a CSV file for each table, ``details``,
    ``figure3.png``, ``provenance.json``, and below ``runs`` the model and figures of every
    experiment. An experiment that fails is reported at the end and does not stop the others.

    Parameters
    ----------
    sets : mapping
        Of :func:`~mcmiad_monai.research.bmad.sets.find_bmad`.
    tables, seeds, shots, encoders
        See :func:`~mcmiad_monai.research.protocols.plans.experiments`.

    Raises
    ------
    CohortIncomplete
        If an experiment failed; the tables have been written from the others.
    WeightsError, ValueError, TypeError
        If encoder, prior or head of the method cannot be built; nothing has been run then.
    """
    incomplete = {
        name: part for name, s in sets.items() for part in ("test", "train") if not s.cases(part)
    }
    if incomplete:
        lacking = ", ".join(f"{name} has no {part} part" for name, part in incomplete.items())
        raise ValueError(f"{lacking}: give sets with both, or move the others elsewhere.")
    root = Path(out)
    lab = Laboratory(
        sets=sets, cache_dir=root / "features", device=device, size=size, progress=progress
    )
    method = choose_schedule(method, lab, root, seeds[0])
    plans = experiments(sets, method, tables=tables, seeds=seeds, shots=shots, encoders=encoders)
    # every experiment needs these: wrong options or missing weights show now, and once
    method.build_head(lab.encoder(method), lab.prior(method), seed=0)
    reports: list[dict[str, Any]] = []
    models: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for number, plan in enumerate(plans, 1):
        title = f"{plan.name}, {' + '.join(plan.sets)}, seed {plan.seed}"
        logger.info("experiment %d of %d: %s", number, len(plans), title)
        try:
            report = run_experiment(plan, lab, root / "runs")
        except (ValueError, RuntimeError, OSError, ArithmeticError) as error:
            logger.exception("%s failed", title)
            failed[title] = f"{type(error).__name__}: {error}"
            continue
        # the same run can be in several tables, under a name of each
        reports.append({**report, "experiment": {**report["experiment"], "name": plan.name}})
        if plan.name == BASE:
            models.setdefault(plan.sets[0], root / "runs" / plan.folder / MODEL)
    names = "".join(f"\n  {name}: {error}" for name, error in failed.items())
    if not reports:
        raise RuntimeError(f"none of {len(plans)} experiments could be run:{names}")
    made = write_tables(root, Results(reports), tables)
    if models:
        figure_3([(sets[name], p) for name, p in models.items()], root / "figure3.png", size=size)
    content = {
        "method": method.to_dict(),
        "seeds": list(seeds),
        "data": lab.data,
        "experiments": [report["experiment"]["name"] for report in reports],
        "failed": failed,
        **{key: reports[0]["provenance"][key] for key in ("encoder", "text_prior")},
        "tables_written_with": produced_with(),
    }
    write_text(root / "provenance.json", json.dumps(content, indent=1, default=str))
    if failed:
        raise CohortIncomplete(f"{len(reports)} experiments done, {len(failed)} failed:{names}")
    return made


def choose_schedule(method: Method, lab: Laboratory, root: Path, seed: int) -> Method:
    """The method with the schedule that validates better, chosen once (§4.2: on liver CT).

    The set is that of the liver, or else the first that has a validation part; without any it is
    cosine. ``schedule.json`` keeps the choice for the next run.
    """
    if method.schedule != "auto":
        return method
    options = {"method": method.to_dict(), "data": lab.data, "seed": seed}
    path = root / "schedule.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("options") != json.loads(json.dumps(options)):
        order = sorted(lab.sets, key=lambda name: lab.sets[name].modality != LIVER_CT.name)
        name = next((name for name in order if lab.sets[name].cases("val")), None)
        found = {"options": options, "schedule": "cosine", "set": name, "validation": {}}
        if name is not None:
            found["validation"] = lab.compare_schedules(name, method, root / "schedule", seed)
            figures = found["validation"]
            found["schedule"] = "step" if figures["step"] > figures["cosine"] else "cosine"
        write_text(path, json.dumps(found, indent=1))
    why = (
        f"validation of {found['set']}: {found['validation']}" if found["set"] else "no validation"
    )
    logger.info("schedule of the learning rate: %s (%s)", found["schedule"], why)
    return method.with_options(schedule=found["schedule"])


def images_of(method: Mapping[str, Any]) -> str:
    """How images were prepared, and which of their pixels count, for a report."""
    colours = "colours kept" if method["keep_colours"] else "grey"
    scale = "normalised one by one" if method["normalize_images"] else "not normalised"
    pixels = "those of the foreground" if method["mask_background"] else "all"
    return f"{colours}, {scale}; pixels that count: {pixels}"


def write_tables(root: Path, results: Results, tables: Sequence[int]) -> list[Table]:
    """Write each table as Markdown and CSV, and all of them as one page."""
    made = [MAKERS[number](results) for number in sorted(tables)] + [details(results)]
    for table in made:
        write_text(root / f"{table.name}.md", table.markdown())
        write_text(root / f"{table.name}.csv", table.csv())
    write_text(root / "report.md", page(made, results))
    return made


def page(made: Sequence[Table], results: Results) -> str:
    """All tables, below the data and options behind them."""
    sample = results.reports[0]
    encoder, prior = (sample["provenance"][k] for k in ("encoder", "text_prior"))
    data: dict[str, Any] = {k: v for r in results.reports for k, v in r["data"].items()}
    seeds = sorted({r["experiment"]["seed"] for r in results.reports})
    lines = [
        "# Reproduction of the paper's tables",
        "",
        f"- encoder {encoder['name']}, weights {encoder['weights']}, pool {encoder['pool']}, "
        f"tensors {encoder['tensors_sha256'][:12]}",
        f"- text prior {prior['encoder']}, {prior['weights']}",
        f"- images: {images_of(sample['experiment']['method'])}",
        f"- seeds {seeds}; epochs {sample['experiment']['method']['max_epochs']}; score "
        f"{sample['experiment']['score']}; weights of the last epoch",
        f"- software {json.dumps(sample['provenance']['software'])}, "
        f"revision {sample['provenance']['git_revision']}",
    ]
    for name, counts in data.items():
        each = ", ".join(f"{s} {counts[s][0]} + {counts[s][1]}" for s in ("train", "val", "test"))
        lines.append(f"- {name}: {each} (good + anomalous), layout {counts['layout']}")
    if str(encoder["weights"]).startswith("random"):
        lines += ["", "> **The encoder has random weights: these figures mean nothing.**"]
    return "\n".join(lines) + "\n\n" + "\n".join(table.markdown() for table in made)
