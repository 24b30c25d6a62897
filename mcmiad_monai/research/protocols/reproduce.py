"""All tables of the paper with one call, which can be stopped and started again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcmiad_monai.files.writing import write_text
from mcmiad_monai.inference.cohort import CohortIncomplete
from mcmiad_monai.provenance import produced_with
from mcmiad_monai.research.bmad.sets import ImageSet, Masks
from mcmiad_monai.research.protocols.adaptation import adapt_first
from mcmiad_monai.research.protocols.experiment import MODEL, run_experiment
from mcmiad_monai.research.protocols.laboratory import Laboratory
from mcmiad_monai.research.protocols.pictures import figure_3
from mcmiad_monai.research.protocols.plans import BASE, TABLES, experiments
from mcmiad_monai.research.protocols.schedules import choose_schedule
from mcmiad_monai.research.protocols.tables import MAKERS, Results, Table, details
from mcmiad_monai.training.method import Method

logger = logging.getLogger(__name__)

#: What of a mask is lesion, in words for the report.
MASKS: dict[Masks, str] = {
    "any": "masks: all above 0 is lesion",
    "white": "masks: white (255) alone is lesion, as BMAD's own code reads them; figures with all "
    "above 0 are not comparable",
}


def reproduce(
    sets: Mapping[str, ImageSet],
    out: str | Path,
    method: Method,
    *,
    tables: Sequence[int] = TABLES,
    seeds: Sequence[int] = (0, 1, 2),
    shots: Sequence[int] = (1,),
    encoders: Mapping[str, str] | None = None,
    adaptation: bool = True,
    device: str = "cpu",
    size: int = 224,
    progress: bool = True,
) -> list[Table]:
    """Run what the tables need and has not been run, and write them.

    CLIP is adapted first (§3.2). Into ``out`` come the adapted prior, ``report.md``, a Markdown and
    a CSV file for each table, ``details``, ``figure3.png``, ``provenance.json``, and below ``runs``
    the model and figures of every experiment. Where white alone is lesion, all but prior and runs
    is in ``white_masks``. An experiment that fails is reported at the end and does not stop the
    others.

    Parameters
    ----------
    sets : mapping
        Of :func:`~mcmiad_monai.research.bmad.sets.find_bmad`.
    tables, seeds, shots, encoders
        See :func:`~mcmiad_monai.research.protocols.plans.experiments`.
    adaptation : bool
        See :func:`~mcmiad_monai.research.protocols.adaptation.adapt_first`.

    Raises
    ------
    AdaptationError
        If CLIP cannot be adapted to the images.
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
    # every experiment needs these: wrong options or missing weights show now, and once
    encoder = lab.encoder(method)
    adapted = adapt_first(sets, method, root, wanted=adaptation, device=device, progress=progress)
    method = adapted.method(method)
    if adapted.prior is not None:
        lab.priors[method.text_prior] = adapted.prior
    if method.trains_head:
        method.build_head(encoder, lab.prior(method), seed=0)
    method = choose_schedule(method, lab, root, seed=seeds[0])
    plans = experiments(sets, method, tables=tables, seeds=seeds, shots=shots, encoders=encoders)
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
    shown = report_folder(root, lab.masks)
    notes = (adapted.note, MASKS[lab.masks])
    made = write_tables(shown, Results(reports), tables, notes)
    if models:
        figure_3([(sets[name], p) for name, p in models.items()], shown / "figure3.png", size=size)
    content = {
        "method": method.to_dict(),
        "seeds": list(seeds),
        "data": lab.data,
        "notes": notes,
        "experiments": [report["experiment"]["name"] for report in reports],
        "failed": failed,
        **{key: reports[0]["provenance"][key] for key in ("encoder", "text_prior")},
        "tables_written_with": produced_with(),
    }
    write_text(shown / "provenance.json", json.dumps(content, indent=1, default=str))
    if failed:
        raise CohortIncomplete(f"{len(reports)} experiments done, {len(failed)} failed:{names}")
    return made


def images_of(method: Mapping[str, Any]) -> str:
    """How images were prepared, and which of their pixels count, for a report."""
    colours = "colours kept" if method["keep_colours"] else "grey"
    scale = "normalised one by one" if method["normalize_images"] else "not normalised"
    pixels = "those of the foreground" if method["mask_background"] else "all"
    return f"{colours}, {scale}; pixels that count: {pixels}"


def chosen_scores(results: Results) -> list[str]:
    """Which score each experiment got, where the method leaves that open, for a report."""
    rows = [
        f"- {r['experiment']['name']}, {' + '.join(r['experiment']['sets'])}, "
        f"seed {r['experiment']['seed']}: {r['score']['summary']}"
        for r in results.reports
        if "score" in r
    ]
    return ["", "Scores that were chosen:", "", *rows] if rows else []


def report_folder(out: Path, masks: Masks) -> Path:
    """Where tables go: figures of both readings of masks stand side by side."""
    return out if masks == "any" else out / "white_masks"


def write_tables(
    root: Path, results: Results, tables: Sequence[int], notes: Sequence[str]
) -> list[Table]:
    """Write each table as Markdown and CSV, with notes, and all of them as one page."""
    made = [MAKERS[number](results) for number in sorted(tables)] + [details(results)]
    for table in made:
        noted = replace(table, notes=(*table.notes, *notes))
        write_text(root / f"{table.name}.md", noted.markdown())
        write_text(root / f"{table.name}.csv", table.csv())
    write_text(root / "report.md", page(made, results, notes))
    return made


def page(made: Sequence[Table], results: Results, notes: Sequence[str]) -> str:
    """All tables, below the data and options behind them."""
    sample = results.reports[0]
    encoder, prior = (sample["provenance"][k] for k in ("encoder", "text_prior"))
    data: dict[str, Any] = {k: v for r in results.reports for k, v in r["data"].items()}
    seeds = sorted({r["experiment"]["seed"] for r in results.reports})
    options = sample["experiment"]["method"]
    trained = f"epochs {options['max_epochs']}; weights of the last epoch"
    lines = [
        "# Reproduction of the paper's tables",
        "",
        f"- encoder {encoder['name']}, weights {encoder['weights']}, pool {encoder['pool']}, "
        f"tensors {encoder['tensors_sha256'][:12]}",
        *([f"- text prior {prior['encoder']}, {prior['weights']}"] if prior else []),
        f"- images: {images_of(options)}",
        *(f"- {note}" for note in notes),
        f"- seeds {seeds}; score {sample['experiment']['score']}; "
        f"{trained if prior else 'no head was trained'}",
        f"- software {json.dumps(sample['provenance']['software'])}, "
        f"revision {sample['provenance']['git_revision']}",
    ]
    for name, counts in data.items():
        each = ", ".join(f"{s} {counts[s][0]} + {counts[s][1]}" for s in ("train", "val", "test"))
        lines.append(f"- {name}: {each} (good + anomalous), layout {counts['layout']}")
    lines += chosen_scores(results)
    if "random, seed" in str(encoder["weights"]):
        lines += ["", "> **The encoder has random weights: these figures mean nothing.**"]
    return "\n".join(lines) + "\n\n" + "\n".join(table.markdown() for table in made)
