"""Tables 1 to 4 in the paper's form, from the figures of finished experiments."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mcmiad_monai.research.protocols.plans import BASE
from mcmiad_monai.research.protocols.published import (
    BEST_ONE_SHOT,
    BEST_PER_SET,
    BEST_UNIFIED_MEAN,
    OTHER_SETS,
    TABLE_1_PAPER,
    TABLE_1_UNIFIED,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_SETS,
    Pair,
)
from mcmiad_monai.research.protocols.scores import OWN, SCORES

METRICS = {"image_auroc": "Image-AUROC", "pixel_auroc": "Pixel-AUROC"}
#: Columns of the detailed table.
DETAILS = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "image_by_mask_auroc",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro",
    "pixel_dice_at_threshold",
)
MISSING = "–"

Report = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of strings under a title, with notes below."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = [f"## {self.title}", "", "| " + " | ".join(self.header) + " |"]
        lines.append("|" + "---|" * len(self.header))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines).rstrip() + "\n"

    def csv(self) -> str:
        """With the header as its first line."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([self.header, *self.rows])
        return stream.getvalue()


class Results:
    """Figures of finished experiments, over seeds.

    Parameters
    ----------
    reports : iterable of dict
        Of :func:`~mcmiad_monai.research.protocols.experiment.run_experiment`.
    """

    def __init__(self, reports: Iterable[Report]) -> None:
        self.reports = list(reports)

    @property
    def sets(self) -> list[str]:
        """Sets that were measured, those of the paper first."""
        found = {name for report in self.reports for name in report["results"]}
        ordered = [name for name in (*TABLE_SETS, *OTHER_SETS) if name in found]
        return ordered + sorted(found - set(ordered))

    def values(
        self, experiment: str, name: str, metric: str, score: str | None = None
    ) -> list[float]:
        """A figure in per cent of each seed; seeds on which it is undefined are left out."""
        found = []
        for report in self.reports:
            if report["experiment"]["name"] == experiment and name in report["results"]:
                chosen = score or report["experiment"]["score"]
                value = report["results"][name]["scores"].get(chosen, {}).get(metric)
                found += [] if value is None else [100 * value]
        return found

    def mean_values(
        self, experiment: str, names: Sequence[str], metric: str, score: str | None = None
    ) -> list[float]:
        """Mean over sets, seed by seed; none if a set is missing."""
        each = [self.values(experiment, name, metric, score) for name in names]
        if not each or len({len(values) for values in each}) > 1:
            return []
        return [statistics.fmean(values) for values in zip(*each, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, one decimal; one seed has no deviation."""
    if not values:
        return MISSING
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def title_of(name: str) -> str:
    """Name of a set in the tables."""
    return {**TABLE_SETS, **OTHER_SETS}.get(name, name)


def table_1(results: Results) -> Table:
    """AUROCs on BMAD, one model for each set and one for all, beside those published."""
    names = results.sets
    paper = [name for name in names if name in TABLE_SETS]
    header = (
        "Category",
        *(f"{peer} (multi-class)" for peer in TABLE_1_UNIFIED),
        "ours, unified",
        "MCMIAD, paper (per set)",
        "best published (per set)",
        "ours (per set)",
    )
    rows: list[tuple[str, ...]] = []
    for which, (metric, label) in enumerate(METRICS.items()):
        rows.append((f"**{label} (%)**", *[""] * (len(header) - 1)))
        for name in names:
            rows.append(
                (
                    title_of(name),
                    *(cited(peer, name, which) for peer in TABLE_1_UNIFIED.values()),
                    spread(results.values("unified", name, metric)),
                    cited(TABLE_1_PAPER, name, which),
                    cited(BEST_PER_SET, name, which),
                    spread(results.values(BASE, name, metric)),
                )
            )
        means = [average(peer, which) for peer in TABLE_1_UNIFIED.values()]
        complete = len(paper) == len(TABLE_SETS)
        rows.append(
            (
                "Average",
                *means,
                spread(results.mean_values("unified", paper, metric)) if complete else MISSING,
                average(TABLE_1_PAPER, which),
                average(BEST_PER_SET, which),
                spread(results.mean_values(BASE, paper, metric)) if complete else MISSING,
            )
        )
    return Table(
        "table1",
        "Table 1: image and pixel AUROC (%) on BMAD",
        header,
        tuple(rows),
        (
            "multi-class and unified columns are one model for all sets; the others one for each",
            f"best published unified mean: {BEST_UNIFIED_MEAN[0]} / {BEST_UNIFIED_MEAN[1]}",
            "the paper's Retina is one row; here RESC stands in it, and OCT2017, which has no "
            "masks, below; the average is over liver, brain and RESC",
            "images are labelled by their folder; by mask: see the details",
        ),
    )


def table_2(results: Results) -> Table:
    """Size of the trained head against the mean of image and pixel AUROC."""
    names = [name for name in results.sets if name in TABLE_SETS]
    both = [results.mean_values(BASE, names, metric) for metric in METRICS]
    mean = [statistics.fmean(pair) for pair in zip(*both, strict=True)] if all(both) else []
    sizes = {r["parameters"] for r in results.reports if r["experiment"]["name"] == BASE}
    counted = ", ".join(f"{size / 1e6:.2f}" for size in sorted(sizes)) or MISSING
    rows = [(f"{model}, published", f"{m:g}", f"{a}") for model, (m, a) in TABLE_2.items()]
    rows.append(("ours", counted, spread(mean)))
    note = f"ours: mean over {', '.join(title_of(n) for n in names)}; parameters are counted"
    header = ("Model", "Trainable parameters (millions)", "Avg. image/pixel AUROC (%)")
    return Table("table2", "Table 2: model size and AUROC", header, tuple(rows), (note,))


def table_3(results: Results) -> Table:
    """A few normal images: AUROCs beside those published for one."""
    shots = sorted({r["experiment"]["shots"] for r in results.reports if r["experiment"]["shots"]})
    header = ["Dataset"]
    for label in METRICS.values():
        header += [f"{label}: UniAD, 1", "MCMIAD, 1", "best published, 1"]
        header += [f"ours, {k}" for k in shots]
    rows = []
    for name in results.sets:
        row = [title_of(name)]
        for which, metric in enumerate(METRICS):
            row += [cited(TABLE_3[model], name, which) for model in ("UniAD", "MCMIAD")]
            row.append(cited(BEST_ONE_SHOT, name, which))
            row += [spread(results.values(f"{k}-shot", name, metric)) for k in shots]
        rows.append(tuple(row))
    notes = ("support images of every run are listed in its result.json",)
    title = "Table 3: one-shot and few-shot AUROC (%)"
    return Table("table3", title, tuple(header), tuple(rows), notes)


def table_4(results: Results) -> Table:
    """Ablations, as means over the sets: of fusion as in the paper, and of all other options."""
    names = [name for name in results.sets if name not in OTHER_SETS]
    found = dict.fromkeys(
        r["experiment"]["name"]
        for r in results.reports
        if r["experiment"]["shots"] is None and r["experiment"]["name"] != "unified"
    )
    rows = []
    for variant in found:
        figures = [spread(results.mean_values(variant, names, metric)) for metric in METRICS]
        published = TABLE_4.get(variant)
        cells = (MISSING, MISSING) if published is None else tuple(map(str, published))
        rows.append((variant, *cells, *figures))
    for score in SCORES:
        figures = [spread(results.mean_values(BASE, names, metric, score)) for metric in METRICS]
        rows.append((f"score {score}", MISSING, MISSING, *figures))
    header = ("Method", "Image-AUROC, paper", "Pixel-AUROC, paper", "Image-AUROC", "Pixel-AUROC")
    note = f"means over {', '.join(title_of(n) for n in names)}; one change each"
    title = "Table 4: ablations (AUROC %)"
    return Table("table4", title, header, tuple(rows), (note,))


def details(results: Results) -> Table:
    """Every figure of every experiment, set and scoring option."""
    rows = []
    names = dict.fromkeys(report["experiment"]["name"] for report in results.reports)
    for experiment in names:
        for name in results.sets:
            for score in (*SCORES, OWN):
                values = [results.values(experiment, name, metric, score) for metric in DETAILS]
                if any(values):
                    cells = (spread(v) for v in values)
                    rows.append((experiment, title_of(name), score, *cells))
    title = "Details: all figures (%), mean ± standard deviation over seeds"
    return Table("details", title, ("Experiment", "Set", "Score", *DETAILS), tuple(rows))


def cited(source: dict[str, Pair], name: str, which: int) -> str:
    """A published figure."""
    return f"{source[name][which]}" if name in source else MISSING


def average(source: dict[str, Pair], which: int) -> str:
    """Mean of the published figures of all three sets."""
    return f"{statistics.fmean(source[name][which] for name in TABLE_SETS):.1f}"


MAKERS: dict[int, Callable[[Results], Table]] = {1: table_1, 2: table_2, 3: table_3, 4: table_4}
